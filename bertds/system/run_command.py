"""Ends every command in the same way: one line on standard error and an exit code, no traceback."""

from __future__ import annotations

import atexit
import errno
import os
import resource
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from bertds.errors import (
    EXIT_BAD_INPUT,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    BertdsError,
    ConfigError,
    one_line,
    reason_of,
)
from bertds.system.atomic_files import (
    DISK_FULL,
    NOT_ALLOWED,
    WRONG_PATH,
    explain_os_error,
    os_error_of,
)
from bertds.system.logs import LogFile, log
from bertds.system.secrets import masked

_INTERRUPT_AGAIN_SECONDS = 0.05
_SHOW_CURSOR = "\x1b[?25h"
OF_THE_USER = (*DISK_FULL, *NOT_ALLOWED, *WRONG_PATH)
"""Errors of the operating system that are not bugs, if they name a file."""


def guarded(main: Callable[[list[str]], int], argv: Sequence[str] | None = None) -> int:
    """Run a command's ``main`` and turn exceptions into exit codes.

    ``--debug`` anywhere in the arguments shows the traceback.

    Args:
        main: takes the arguments, returns the exit code.
        argv: the arguments; None = ``sys.argv[1:]``.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [expand_home(argument) for argument in arguments if argument != "--debug"]
    _open_closed_streams()
    _allow_open_files()
    try:
        with _no_interrupt_is_lost():
            _check_current_folder()
            code = main(arguments)
            sys.stdout.flush()  # here, so that a closed pipe or a full disk is handled below
            return code
    except BertdsError as error:
        _report(f"error: {error}", debug)
        return error.exit_code
    except KeyboardInterrupt:
        return _interrupted()
    except (BrokenPipeError, SystemExit) as error:
        # The reader of a pipe ended (`... | head`). Python would print an error when it flushes.
        # rich handles it by a SystemExit.
        if not isinstance(error.__context__ or error, BrokenPipeError):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        if _was_interrupted(error):
            return _interrupted()
        _report(
            f"error: the package {str(error.name).partition('.')[0]} is not installed for "
            f"{sys.executable}; run make install to set up .venv with all dependencies, then use "
            ".venv/bin/python or source .venv/bin/activate",
            debug,
        )
        return EXIT_BAD_INPUT
    except Exception as error:
        if _was_interrupted(error):
            return _interrupted()
        found = os_error_of(error)
        if found is not None and not found.filename and found.errno in DISK_FULL:
            _report("error: the disk of the output or of a temporary file is full", debug)
            return EXIT_FAILED
        if found is not None and found.errno == errno.EMFILE:
            limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            _report(
                f"error: too many open files; the limit of this process is {limit:,}: raise nofile "
                "in /etc/security/limits.conf, or use ulimit -Hn",
                debug,
            )
            return EXIT_FAILED
        if _is_out_of_memory(error):
            reason = reason_of(error) or type(error).__name__
            _report(f"error: out of memory ({reason}){_address_space()}", debug)
            return EXIT_FAILED
        # A full disk or a wrong path is a mistake that the user can correct; its message names the
        # file.
        if isinstance(error, OSError) and error.filename and error.errno in OF_THE_USER:
            path = Path(os.fsdecode(error.filename))
            explained = explain_os_error(error, path)
            if error.errno in NOT_ALLOWED:  # perhaps while reading
                explained = ConfigError(f"{path}: cannot be accessed ({error.strerror})")
            _report(f"error: {explained}", debug)
            return explained.exit_code
        _report(
            f"unexpected error: {type(error).__name__}: {' '.join(str(error).split())} "
            f"(run again with --debug for the traceback){_address_space()}",
            debug,
        )
        return EXIT_FAILED


def _is_out_of_memory(error: Exception) -> bool:
    """Return whether memory could not be allocated: by Python, NumPy, torch on a CPU or a GPU."""
    return (
        isinstance(error, MemoryError)
        or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
        or type(error).__name__ == "OutOfMemoryError"  # of torch, which may not be imported here
        or "can't allocate memory" in str(error)  # torch on a CPU
    )


def _address_space() -> str:
    """Return a note on a limited address space, or "".

    torch maps far more than it uses, and its errors do not name the limit: a library that cannot be
    loaded, a thread that cannot be started.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return ""
    return (
        "; the cause may be that the address space of a process is limited to "
        f"{limit / 2**30:.3g} GiB: try again after `ulimit -v unlimited`"
    )


def _allow_open_files() -> None:
    """Raise this process's limit of open files, usually 1,024, as far as the system allows.

    A mapped shard keeps its file open, and a large corpus has thousands of shards.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # macOS has a lower limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _open_closed_streams() -> None:
    """Replace streams that were closed (``2>&-``): a file would take the number of one."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115


def _check_current_folder() -> None:
    try:
        os.getcwd()
    except OSError as error:
        raise ConfigError(
            f"the current folder cannot be used ({error.strerror}); change to another one"
        ) from error


def _interrupted() -> int:
    """Return the exit code of Ctrl-C; from now on another one ends the process at once.

    It would otherwise interrupt the interpreter's own clean-up, which prints a traceback.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        with suppress(ValueError):  # not in the main thread
            signal.signal(signal.SIGINT, signal.SIG_DFL)
    # A live display hides the cursor, and may have been interrupted before it could show it again.
    if sys.stderr.isatty() and os.environ.get("TERM") != "dumb":
        print(_SHOW_CURSOR, end="", file=sys.stderr, flush=True)
    return EXIT_INTERRUPTED


def end_process(code: int) -> NoReturn:
    """End the process as Python does, but without taking down its modules.

    With torch and transformers loaded, that takes seconds, in which a terminal shows nothing.
    """
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads and process pools
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


@contextmanager
def _no_interrupt_is_lost() -> Iterator[None]:
    """Repeat a Ctrl-C that arrives in a callback of the interpreter, such as that of a weak link.

    Python prints "Exception ignored in" there, with a traceback, and the command would continue.
    """
    before = sys.unraisablehook

    def hook(unraisable: sys.UnraisableHookArgs) -> None:
        if unraisable.exc_type is not None and issubclass(unraisable.exc_type, KeyboardInterrupt):
            # Later, since it would be ignored again in this function.
            threading.Timer(_INTERRUPT_AGAIN_SECONDS, _interrupt_main_thread).start()
        else:
            before(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _interrupt_main_thread() -> None:
    # A signal to this thread, since only that ends a system call in it.
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def _was_interrupted(error: BaseException | None) -> bool:
    """Return whether an error was caused by Ctrl-C, such as that of an interrupted import."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def expand_home(argument: str) -> str:
    """Return an argument with ``~`` as the home folder, which a shell keeps in ``--x=~/y``."""
    if argument == "~" or argument.startswith("~/"):
        return os.path.expanduser(argument)
    option, equals, value = argument.partition("=~/")
    if equals and option.replace("-", "").replace(".", "").replace("_", "").isalnum():
        return f"{option}={os.path.expanduser('~/' + value)}"
    return argument


def _report(message: str, debug: bool) -> None:
    rank = os.environ.get("RANK", "0")
    if rank != "0":
        # Bad input fails on every rank alike. Rank 0 reports it, and the launcher ends the others
        # meanwhile. A rank that is alone with its error reports it after a few seconds.
        time.sleep(3.0)
        message = f"rank {rank}: {message}"
    message = one_line(masked(message))
    if debug:
        print(masked(traceback.format_exc()), file=sys.stderr, end="", flush=True)
    if log.handlers:
        for handler in log.handlers:
            if isinstance(handler, LogFile):
                handler.emit(log.makeRecord(log.name, 40, __file__, 0, message, (), sys.exc_info()))
    print(f"bertds: {message}", file=sys.stderr, flush=True)
