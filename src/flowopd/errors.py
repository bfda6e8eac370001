"""The one exception that users see."""


class FlowOPDError(Exception):
    """Something the user can mend. Its text says what is wrong, where, and what would be right."""
