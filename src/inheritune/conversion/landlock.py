"""Confine the writing of a process to one directory with Landlock, a Linux security module."""

import ctypes
import os
import struct
from pathlib import Path

# System calls, with the same numbers on every architecture.
_CREATE, _ADD, _RESTRICT = 444, 445, 446
# Rights, with the version (ABI) of Landlock that brought them. Reading is not restricted.
_EXECUTE, _WRITE_FILE = 1, 2  # ABI 1
_REMOVE_AND_MAKE = sum(1 << bit for bit in range(4, 13))  # ABI 1: files and directories of any kind
_REMOVE_DIR, _REMOVE_FILE, _MAKE_DIR, _MAKE_REG = 1 << 4, 1 << 5, 1 << 7, 1 << 8
_REFER, _TRUNCATE, _IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15  # ABI 2, 3, 5
_BIND_AND_CONNECT_TCP = 3  # ABI 4
_ABSTRACT_SOCKETS_AND_SIGNALS = 3  # ABI 6


def restrict_writing(libc: ctypes.CDLL, writable: Path) -> bool:
    """Refuse this process changes to files outside a directory; tell whether the kernel can."""
    abi = libc.syscall(_CREATE, None, ctypes.c_size_t(0), 1)
    if abi < 1:
        return False
    rights = _EXECUTE | _WRITE_FILE | _REMOVE_AND_MAKE
    rights |= (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0)
    rights |= _IOCTL_DEV if abi >= 5 else 0
    network = _BIND_AND_CONNECT_TCP if abi >= 4 else 0
    scoped = _ABSTRACT_SOCKETS_AND_SIGNALS if abi >= 6 else 0
    size = 24 if abi >= 6 else 16 if abi >= 4 else 8
    attributes = struct.pack("=QQQ", rights, network, scoped)[:size]
    rules = libc.syscall(_CREATE, attributes, ctypes.c_size_t(size), 0)
    if rules < 0:
        return False
    inside = _WRITE_FILE | _REMOVE_FILE | _REMOVE_DIR | _MAKE_DIR | _MAKE_REG
    inside |= _TRUNCATE if abi >= 3 else 0
    try:
        # Libraries that torch imports where they are installed (dill) open the null device to
        # write.
        _allow(libc, rules, Path(os.devnull), _WRITE_FILE)
        is_writable = _allow(libc, rules, writable, inside)
        return is_writable and bool(libc.syscall(_RESTRICT, rules, 0) == 0)
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: Path, rights: int) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        rule = struct.pack("=Qi", rights, descriptor)
        return bool(libc.syscall(_ADD, rules, 1, rule, 0) == 0)
    finally:
        os.close(descriptor)
