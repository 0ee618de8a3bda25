"""Build the seccomp filter that refuses system calls to a confined process."""

import errno
import re
import struct

# ``name:x86_64/aarch64``; a dash: the architecture has no such call.
_REFUSED = (
    # --- the network, programs, processes ---
    "socket:41/198 socketpair:53/199 execve:59/221 execveat:322/281 fork:57/- vfork:58/-",
    # --- other processes: their memory, signals, priority ---
    "ptrace:101/117 process_vm_readv:310/270 process_vm_writev:311/271 process_madvise:440/440",
    "pidfd_open:434/434 pidfd_getfd:438/438 pidfd_send_signal:424/424 kcmp:312/272",
    "kill:62/129 tkill:200/130 tgkill:234/131 rt_sigqueueinfo:129/138 rt_tgsigqueueinfo:297/240",
    "setpriority:141/140 ioprio_set:251/30 sched_setscheduler:144/119 sched_setparam:142/118",
    "sched_setattr:314/274 migrate_pages:256/238 move_pages:279/239",
    # --- namespaces and mounts ---
    "setns:308/268 unshare:272/97 chroot:161/51 pivot_root:155/41 mount:165/40 umount2:166/39",
    "open_tree:428/428 move_mount:429/429 fsopen:430/430 fsconfig:431/431 fsmount:432/432",
    "fspick:433/433 mount_setattr:442/442",
    # --- modes, owners, times, attributes of files: Landlock does not cover them ---
    "chmod:90/- fchmod:91/52 fchmodat:268/53 fchmodat2:452/452",
    "chown:92/- fchown:93/55 lchown:94/- fchownat:260/54",
    "utime:132/- utimes:235/- futimesat:261/- utimensat:280/88",
    "setxattr:188/5 lsetxattr:189/6 fsetxattr:190/7 setxattrat:463/463 file_setattr:469/469",
    "removexattr:197/14 lremovexattr:198/15 fremovexattr:199/16 removexattrat:466/466",
    # --- what lives outside of files: System V and POSIX messages, the keyring ---
    "shmget:29/194 shmat:30/196 shmctl:31/195 shmdt:67/197 msgget:68/186 msgsnd:69/189",
    "msgrcv:70/188 msgctl:71/187 semget:64/190 semop:65/193 semctl:66/191 semtimedop:220/192",
    "mq_open:240/180 mq_unlink:241/181 add_key:248/217 request_key:249/218 keyctl:250/219",
    # --- ways around all this ---
    "bpf:321/280 perf_event_open:298/241 userfaultfd:323/282 io_uring_setup:425/425",
    "open_by_handle_at:304/265",
)
# Refused for these values of their second argument: typing into a terminal (TIOCSTI, TIOCLINUX),
# taking one over (TIOCSCTTY), attributes of files (FS_IOC_SETFLAGS, FS_IOC_FSSETXATTR), signals to
# others (FIOSETOWN, SIOCSPGRP, F_SETOWN, F_SETSIG, F_SETOWN_EX).
_REFUSED_COMMANDS = {
    "ioctl:16/29": (0x5412, 0x541C, 0x540E, 0x40086602, 0x401C5820, 0x8901, 0x8902),
    "fcntl:72/25": (8, 10, 15),
}
_CLONE, _CLONE3, _PRLIMIT64 = "clone:56/220", "clone3:435/435", "prlimit64:302/261"
_CLONE_THREAD = 0x10000

_ARCHITECTURES = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_X32 = 0x40000000  # x86_64: from here on the same calls in another form

# Classic BPF: the code of an instruction, how many instructions to skip if its comparison holds,
# how many if not, and its operand.
_Instruction = tuple[int, int, int, int]
_LOAD, _EQUAL, _AT_LEAST, _HAS_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24  # offsets in the kernel's seccomp_data
_ALLOW: _Instruction = (_RETURN, 0, 0, 0x7FFF0000)
_REFUSE: _Instruction = (_RETURN, 0, 0, 0x00050000 | errno.EPERM)
_UNKNOWN: _Instruction = (_RETURN, 0, 0, 0x00050000 | errno.ENOSYS)


def refused_calls(machine: str) -> dict[str, int]:
    """Return the numbers of the system calls that are always refused, by name."""
    return {
        name: int(number) for name, number in _numbers(" ".join(_REFUSED), machine) if number != "-"
    }


def seccomp_filter(machine: str) -> bytes | None:
    """Return the filter as a BPF program; None for an architecture without a table.

    Args:
        machine: Name of the architecture by `platform.machine`.
    """
    if machine not in _ARCHITECTURES:
        return None
    clone, clone3, prlimit64 = (
        int(_numbers(call, machine)[0][1]) for call in (_CLONE, _CLONE3, _PRLIMIT64)
    )
    program: list[_Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, _ARCHITECTURES[machine]),
        _REFUSE,
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        _REFUSE,
    ]
    for number in refused_calls(machine).values():
        program += [(_EQUAL, 0, 1, number), _REFUSE]
    for call, commands in _REFUSED_COMMANDS.items():
        tests = [line for value in commands for line in ((_EQUAL, 0, 1, value), _REFUSE)]
        program += _if_call(int(_numbers(call, machine)[0][1]), _SECOND, tests)
    # Threads are needed, processes are not: a child would outlive the checks of what was written.
    program += _if_call(clone, _FIRST, [(_HAS_BIT, 1, 0, _CLONE_THREAD), _REFUSE])
    # Its flags lie in memory, which no filter sees. Without it, C libraries use `clone`.
    program += [(_EQUAL, 0, 1, clone3), _UNKNOWN]
    # One's own limits can only be lowered; those of others are none of its business.
    program += _if_call(prlimit64, _FIRST, [(_EQUAL, 1, 0, 0), _REFUSE])
    return b"".join(struct.pack("=HBBI", *line) for line in [*program, _ALLOW])


def _if_call(number: int, argument: int, tests: list[_Instruction]) -> list[_Instruction]:
    """Test the lower half of an argument of one system call; allow it if no test refuses."""
    block = [(_LOAD, 0, 0, argument), *tests, _ALLOW]
    return [(_EQUAL, 0, len(block), number), *block]


def _numbers(calls: str, machine: str) -> list[tuple[str, str]]:
    column = list(_ARCHITECTURES).index(machine)
    matches = re.findall(r"(\w+):(\d+)/(\d+|-)", calls)
    return [(name, numbers[column]) for name, *numbers in matches]
