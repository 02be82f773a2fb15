"""What the guard of `inference_mutant` and that of its consumer say of each mutation, on the reported prompt."""

# What each guard says first: the message, counted from 1, and the rule. 9 is after the last message.
BY_THE_NODE = {
    **dict.fromkeys(["extend", "stale_length", "missing_clear", "late_clear"], (2, "length")),
    "alias": (1, "checksum"),
    "late_id": (2, "checksum"),
    "wrong_dtype": (1, "dtype"),
    "wrong_rank": (1, "rank"),
    "end_token": (9, "vocabulary"),
    "lost_end": (9, "end"),
    "early_end": (8, "end"),
    "stale_index": (2, "index"),
    "swapped_stream": (3, "stream"),
}
BY_THE_CONSUMER = BY_THE_NODE | {
    "lost_end": (0, ""),  # nothing comes that it could refuse
    "early_end": (8, "index"),  # the stream is closed: to the consumer, what comes after it is a new one
    "swapped_stream": (3, "index"),  # a new stream again
}
