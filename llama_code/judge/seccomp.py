"""A filter of system calls (seccomp(2)): a program may use those listed here; all others fail with EPERM.

No new processes, no signals to others, no sockets, no new namespaces or mounts, no debugging, no shared memory between
processes, no change of file owners, modes or times: what namespaces and Landlock do not rule out, or only on some
kernels. Threads, timers, pipes and ordinary file calls are allowed, so that programs fare alike at every level.
"""

import ctypes
import errno
import functools
import os
import struct
import sys
from collections.abc import Iterable

from llama_code.judge import linux

# name:number on x86_64:number on aarch64, "-" where there is none.
# files, within what Landlock and the mounts leave
_FILES = """
read:0:63 write:1:64 readv:19:65 writev:20:66 pread64:17:67 pwrite64:18:68 preadv:295:69 pwritev:296:70
preadv2:327:286 pwritev2:328:287 open:2:- openat:257:56 creat:85:- close:3:57 close_range:436:436 lseek:8:62
stat:4:- fstat:5:80 lstat:6:- newfstatat:262:79 statx:332:291 access:21:- faccessat:269:48 faccessat2:439:439
readlink:89:- readlinkat:267:78 statfs:137:43 fstatfs:138:44 getdents:78:- getdents64:217:61 getcwd:79:17
chdir:80:49 fchdir:81:50 dup:32:23 dup2:33:- dup3:292:24 pipe:22:- pipe2:293:59 flock:73:32 fsync:74:82
fdatasync:75:83 ftruncate:77:46 fallocate:285:47 mkdir:83:- mkdirat:258:34 rmdir:84:- unlink:87:- unlinkat:263:35
rename:82:- renameat:264:38 renameat2:316:276 symlink:88:- symlinkat:266:36 umask:95:166 sendfile:40:71
copy_file_range:326:285 fadvise64:221:223
"""
# memory, threads and their locks
_MEMORY = """
mmap:9:222 munmap:11:215 mprotect:10:226 mremap:25:216 madvise:28:233 msync:26:227 mincore:27:232 brk:12:214
futex:202:98 futex_waitv:449:449 set_robust_list:273:99 get_robust_list:274:100 rseq:334:293 membarrier:324:283
sched_yield:24:124 sched_getaffinity:204:123 sched_getparam:143:121 sched_getscheduler:145:120
sched_get_priority_max:146:125 sched_get_priority_min:147:126 getcpu:309:168 set_tid_address:218:96
arch_prctl:158:-
"""
# what a process may know of itself
_ITSELF = """
getpid:39:172 getppid:110:173 gettid:186:178 getuid:102:174 geteuid:107:175 getgid:104:176 getegid:108:177
getresuid:118:148 getresgid:120:150 getgroups:115:158 getpgrp:111:- getpgid:121:155 getsid:124:156
getpriority:140:141 getrlimit:97:163 setrlimit:160:164 getrusage:98:165 times:100:153 uname:63:160 sysinfo:99:179
getrandom:318:278
"""
# time, signals to itself, waiting
_WAITING = """
clock_gettime:228:113 clock_getres:229:114 clock_nanosleep:230:115 nanosleep:35:101 gettimeofday:96:169
time:201:- rt_sigaction:13:134 rt_sigprocmask:14:135 rt_sigreturn:15:139 rt_sigpending:127:136
rt_sigsuspend:130:133 rt_sigtimedwait:128:137 sigaltstack:131:132 pause:34:- restart_syscall:219:128 alarm:37:-
setitimer:38:103 getitimer:36:102 timer_create:222:107 timer_settime:223:110 timer_gettime:224:108
timer_getoverrun:225:109 timer_delete:226:111 timerfd_create:283:85 timerfd_settime:286:86 timerfd_gettime:287:87
poll:7:- ppoll:271:73 select:23:- pselect6:270:72 epoll_create:213:- epoll_create1:291:20 epoll_ctl:233:21
epoll_wait:232:- epoll_pwait:281:22 epoll_pwait2:441:441 eventfd:284:- eventfd2:290:19 recvfrom:45:207
shutdown:48:210 getsockopt:55:209 getsockname:51:204 wait4:61:260 waitid:247:95 exit:60:93 exit_group:231:94
"""
# with conditions
_CONDITIONAL = """
fcntl:72:25 ioctl:16:29 prctl:157:167 prlimit64:302:261 clone:56:220 clone3:435:435 kill:62:129 tgkill:234:131
rt_sigqueueinfo:129:138 rt_tgsigqueueinfo:297:240 socketpair:53:199
"""

_COLUMN = {"x86_64": 1, "aarch64": 2}
_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32_BIT = 0x40000000

_CLONE_THREAD = 0x00010000
# CLONE_NEWTIME is a signal number to clone(), and clone3() is not there
_CLONE_NEW = 0x7E020000
_AF_UNIX, _SOCK_STREAM, _SOCK_TYPE_MASK = 1, 1, 0xF
_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA = 15, 16, 0x53564D41
# F_DUPFD to F_SETLKW, F_DUPFD_CLOEXEC, F_GETPIPE_SZ, locks of open files: nothing that sends signals
_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 1030, 1032, 36, 37, 38)
# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX
_IOCTL = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
_ANY = 0xFFFFFFFF

_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000

# Instructions of classic BPF: load a word of the call's data, mask it, jump if equal or not below, return.
_LOAD, _AND, _IF_EQUAL, _IF_NOT_BELOW, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NUMBER_OFFSET, _ARCH_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
Instruction = tuple[int, int, int, int]
# A number that is no process's and nothing else in the filter.
_PLACEHOLDER = 0x5EED1D01


def _numbers(table: str) -> dict[str, int]:
    column = _COLUMN[linux.MACHINE]
    rows = [entry.split(":") for entry in table.split()]
    return {row[0]: int(row[column]) for row in rows if row[column] != "-"}


def conditions(process: int) -> dict[str, tuple[int, int, tuple[int, ...]]]:
    """Return which argument of a call has which values, under a mask, when it is allowed.

    Args:
        process: the only process that may be signalled.
    """
    return {
        "fcntl": (1, _ANY, _FCNTL),
        "ioctl": (1, _ANY, _IOCTL),
        "prctl": (0, _ANY, (_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA)),
        "prlimit64": (0, _ANY, (0,)),
        "clone": (0, _CLONE_THREAD | _CLONE_NEW, (_CLONE_THREAD,)),
        "kill": (0, _ANY, (process,)),
        "tgkill": (0, _ANY, (process,)),
        "rt_sigqueueinfo": (0, _ANY, (process,)),
        "rt_tgsigqueueinfo": (0, _ANY, (process,)),
        # asyncio has a pair of its own; without sendmsg and sendto it reaches nobody else
        "socketpair": (1, _SOCK_TYPE_MASK, (_SOCK_STREAM,)),
    }


def build_filter(process: int) -> list[Instruction]:
    """Return the filter's instructions: (code, jump if true, jump if false, operand).

    Args:
        process: the only process that may be signalled.
    """
    deny = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCH_OFFSET),
        (_IF_EQUAL, 1, 0, _AUDIT_ARCH[linux.MACHINE]),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
    ]
    if linux.MACHINE == "x86_64":
        program += [(_IF_NOT_BELOW, 0, 1, _X32_BIT), (_RETURN, 0, 0, _KILL)]
    conditional = _numbers(_CONDITIONAL)
    # glibc then falls back to clone(), whose flags can be looked at
    program += [(_IF_EQUAL, 0, 1, conditional["clone3"]), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for name, (argument, mask, values) in conditions(process).items():
        block = [(_LOAD, 0, 0, _ARGUMENTS_OFFSET + 8 * argument), (_AND, 0, 0, mask)]
        for value in values:
            block += [(_IF_EQUAL, 0, 1, value), allow]
        block.append(deny)
        program += [(_IF_EQUAL, 0, len(block), conditional[name]), *block]
    # Runs of neighbouring numbers instead of single ones: the kernel tries the whole filter on every number there is.
    for first, last in _runs(_numbers(_FILES + _MEMORY + _ITSELF + _WAITING).values()):
        program += [(_IF_NOT_BELOW, 1, 0, first), deny, (_IF_NOT_BELOW, 1, 0, last + 1), allow]
    return [*program, deny]


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return the first and last of each run of neighbouring numbers, in rising order."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number - 1:
            runs[-1] = (runs[-1][0], number)
        else:
            runs.append((number, number))
    return runs


@functools.cache
def _code() -> bytes:
    """The filter for the process `_PLACEHOLDER`: building it takes longer than starting a program otherwise does."""
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in build_filter(_PLACEHOLDER))


def prepare() -> None:
    """Build the filter, for this process and those that it forks.

    Raises:
        OSError: this processor's system calls are not known.
    """
    if linux.MACHINE not in _COLUMN:
        raise OSError(f"the filter of system calls is made for {' and '.join(_COLUMN)}, not for {linux.MACHINE}")
    _code()


def install() -> None:
    """Put this process under the filter for good; it must have forbidden itself new privileges.

    Raises:
        OSError: the kernel refused it.
    """
    code = _code().replace(_PLACEHOLDER.to_bytes(4, sys.byteorder), os.getpid().to_bytes(4, sys.byteorder))
    buffer = ctypes.create_string_buffer(code, len(code))
    # struct sock_fprog: the number of instructions, padding, their address
    header = ctypes.create_string_buffer(struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer)))
    linux.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(header), "prctl SECCOMP")
