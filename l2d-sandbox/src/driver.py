# Runs the program on standard input, whose first line is the secret to tell its end by. Touches no file; the secret is neither
# in a variable nor in an object that a program would come across while it runs.
import os as _os
import sys as _sys


def _main():
    source = _sys.stdin.buffer.read()
    # Nothing of the input stays within reach, and reading from it gives the end at once.
    nothing = _os.open("/dev/null", _os.O_RDONLY)
    _os.dup2(nothing, 0)
    _os.close(nothing)
    _sys.stdin = open(0, encoding="utf-8")
    line, _, source = source.partition(b"\n")
    secret = [line]
    line = None
    write, leave, flush = _os.write, _os._exit, (_sys.stdout.flush, _sys.stderr.flush)
    # As text: a comment that names an encoding is a comment.
    program = compile(source.decode("utf-8"), "<program>", "exec")
    source = None

    def run():
        exec(program, {})
        for out in flush:
            try:
                out()
            except Exception:
                pass
        return 0

    # The secret lies on this frame's stack of operands while the program runs.
    write(3, secret.pop()[run():])
    leave(0)


def _tell(error, write, leave):
    kind = type(error)
    if kind is MemoryError:
        # Nothing is left to say more with.
        write(3, b"!MemoryError")
        leave(1)
    try:
        text = f"{kind.__name__}: {error}".strip().rstrip(":")
    except BaseException:
        text = kind.__name__
    try:
        import traceback

        if kind is not SystemExit:
            write(2, "".join(traceback.format_exception(error, limit=-8)).encode("utf-8", "replace"))
    except BaseException:
        pass
    try:
        write(3, b"!" + text[:500].encode("utf-8", "replace"))
    finally:
        leave(1)


_write, _leave = _os.write, _os._exit
try:
    _main()
except BaseException as error:
    _tell(error, _write, _leave)
