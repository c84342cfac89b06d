"""Runs untrusted programs and says whether they passed; knows nothing of models.

Only the standard library is imported here, so that judging starts without torch. `pool.judge` is what callers use.

    caller        pool, workers: hands tasks to worker processes, one a processor
    worker        worker: keeps the deadline                                    trusted
      tests       trial, proxy: runs the data set's tests                       trusted, forked by the worker
      server      server: warm, starts programs                                 exec'ed anew, knows no tests
        program   agent: the program, and what reaches its objects              not trusted, confined

Tests and program talk over one socket, in data of exact builtin types (`wire`); docs/judge.md has the semantics.

What each level covers. "yes" is tested with hostile programs, as root and as an unprivileged user (tests/judge):

    a program cannot                                    full     landlock   rlimits
    see the tests, the answers, other programs          yes      yes        no
    change the verdict but by right answers             yes      yes        no: it can reach the tests' process
    read the caller's files and installed packages      yes      yes        no
    learn whether a path exists                         yes      no         no
    write outside its /tmp                              yes      yes (1)    no
    use the network, sockets                            yes      yes        no
    start processes, signal others, trace, mount        yes      yes        no
    see other processes                                 yes      yes        no
    read the environment of the caller                  yes      yes        no: /proc has it
    leave a process behind                              yes      yes        yes (2)
    leave a file behind                                 yes      yes        no
    run past the deadline, by more than 0.5 s           yes      yes        yes
    take more than 1 GiB of memory                      yes      yes        each process (3)
    start more than 256 threads                         yes      no (4)     no
    fill a disk                                         64 MiB   yes (1)    no
    flood the caller with output or results             8 MiB    8 MiB      8 MiB
    slow the programs of other workers by threads       yes      yes        yes (5)

    (1) it has no writable file at all at this level.
    (2) but for one that a program outside the judge starts for it.
    (3) workers are as many as fit into half of the machine's memory, at one process each.
    (4) 1,024 more than its user has, which for programs of an unprivileged caller is the caller: one of them can keep
        others from starting threads while it runs.
    (5) each worker and its program stay on one processor.

Not covered at any level: faults of the kernel itself, side channels (timing, caches), and a data set's tests, which
are trusted: a test that hands `eval` to a program gives it away. At "full" a program is process 1 of its namespace,
where the kernel ignores signals that it sends itself and does not handle: such programs fare differently elsewhere.
Programs that need processes, sockets, files outside /tmp or packages other than numpy fail as "forbidden" or by an
exception.
"""
