"""The one kind of error a person is meant to read.

A `UserError` is a sentence for the person who can act: which file and field, what was found, what was expected, what to do.
Everything that reports errors (the command line, the Dagster run, the worker) prints its text and no traceback. Any other
exception is a defect of ours and keeps its traceback.
"""


class UserError(Exception):
    """Something outside the code is wrong, and the message says what and where and what to do."""


class CorruptFile(UserError):
    """A file's bytes are not the bytes that were written (its checksum differs)."""
