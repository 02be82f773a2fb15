"""The exercises of lessons 00 to 03."""

from collections.abc import Callable, Sequence

from lab_utils.exercise_kinds import NO_RETURN, NOT_ANSWERED, Exercise, equals, function, plain, quiz
from lab_utils.field_report import REPORTED_IDS, REPORTED_TOKENS


def _update_rule(rule: object) -> str:
    """Stream tokens by the learner's rule, and compare the last message with the one that the bug gives."""
    if not callable(rule):
        return f"expected a function, got {type(rule).__name__}"
    for tokens, expected in ((REPORTED_TOKENS, REPORTED_IDS), ([5, 6, 7], [5, 5, 6, 7])):
        if problem := _rule_problem(rule, tokens, expected):
            return problem
    return ""


def _rule_problem(rule: Callable, tokens: Sequence[int], expected: list[int]) -> str:
    pending, messages = [], []
    for token in tokens:
        messages.append([*pending, token])
        pending = plain(rule(list(pending), list(messages[-1])))
        if pending is ...:
            return NOT_ANSWERED
        if pending is None:
            return NO_RETURN
        if not isinstance(pending, list):
            return f"your function returned {type(pending).__name__}; it has to return the new list of pending ids"
    if messages[-1] == expected:
        return ""
    lengths = list(map(len, messages))
    if lengths[-1] == len(expected):
        return f"the lengths {lengths} are right, but the ids stand in another order; what was there first stays first"
    return f"with your rule the messages have {lengths} ids; they have to double"


LESSONS_00_TO_03: dict[str, Exercise] = {
    "00-messages": Exercise(
        equals(
            5,
            "count one message for each token that you ask for",
            [
                (1, "a plain model answers once; a decoupled model answers once for each token"),
                (6, "the end of the stream is a flag on a message, it is not one more message with text"),
            ],
        ),
        "A decoupled model sends one response for each token it generates.",
    ),
    "00-text": Exercise(
        function(
            [((["1", " cup", " flour"],), "1 cup flour"), (([],), ""), (([" 茶", "匙"],), " 茶匙")],
            "for the pieces {arguments} your function gives {got!r}; join them with nothing in between",
        ),
        "The pieces carry their own spaces, so they are joined with nothing in between.",
    ),
    "00-quiz": Exercise(
        quiz(
            "bac",
            [
                "who holds the model's memory, the notebook or another process?",
                "think of how often the server answered one request above",
                "the server belongs to the kernel that started it",
            ],
        ),
        "The server is a process of its own, it answers once for each token, and it ends with its kernel.",
    ),
    "01-open": Exercise(
        equals(
            {"PROMPT_IDS", "TOKEN_IDS"},
            "look for -1 in the dims of edges between two models, leaving the client's edges out",
            [
                ({"PROMPT_IDS"}, "there is one more, after the decoupled step"),
                ({"TOKEN_IDS"}, "there is one more, before the decoupled step"),
                (
                    {"PROMPT_IDS", "TOKEN_IDS", "FORCED_IDS"},
                    "FORCED_IDS is open, but it comes from the client, not from a model",
                ),
            ],
        ),
        "A prompt may have any number of ids, so PROMPT_IDS has to be open. TOKEN_IDS should carry one id a message: "
        "it is open although it need not be.",
    ),
    "01-lengths": Exercise(
        equals(
            [1, 1, 1, 1, 1, 1],
            "one number for each of the six messages: how many ids does a message carry?",
            [
                (6, "that is the number of messages; write down how many ids each of them carries, as a list"),
                ([1, 2, 3, 4, 5, 6], "that would be all ids so far in every message; here it is the newest one"),
            ],
        ),
        "Each message carries the newest id, and nothing else. For this prompt.",
    ),
    "01-decoupled": Exercise(
        equals(
            "inference",
            "find the one model whose config has model_transaction_policy",
            [
                ("postprocess", "postprocess answers once for each call; it is called once for each message"),
                ("preprocess", "preprocess answers once: one list of ids for one text"),
                ("ensemble_append", "the ensemble streams because one of its steps does; which one?"),
            ],
        ),
        "Only inference may answer a request more than once. Everything after it runs once for each answer.",
    ),
    "01-quiz": Exercise(
        quiz(
            "cab",
            [
                "what does -1 in dims promise?",
                "count the calls of the node after the decoupled step",
                "a contract that allows everything refuses nothing",
            ],
        ),
        "-1 allows any size, the node after a decoupled step runs once a message, and an open edge hides a fault.",
    ),
    "02-lengths": Exercise(
        equals(
            [1, 2, 4, 8, 16, 32, 64, 128],
            "start with 1 and double, eight numbers in all",
            [
                ([1, 1, 1, 1, 1, 1, 1, 1], "that is what the contract says, not what the reporter saw"),
                ([1, 2, 3, 4, 5, 6, 7, 8], "that is growth by one; the last message of the report has 128 ids"),
                ([2, 4, 8, 16, 32, 64, 128, 256], "the last message has 128 ids, so the first has 1"),
            ],
        ),
        "128 is 2 to the power of 7: seven doublings, starting with one id.",
    ),
    "02-formula": Exercise(
        function(
            [((1,), 1), ((2,), 2), ((8,), len(REPORTED_IDS)), ((20,), 524_288), ((28,), 134_217_728)],
            "for n = {arguments} your function gives {got}; message 1 has one id, and each next one twice as many",
        ),
        "n - 1 doublings lead to message n.",
    ),
    "02-gib": Exercise(
        equals(
            29,
            "2 to the power of 30 bytes are 1 GiB, and an id has 4 bytes: how many ids, and in which message?",
            [
                (28, "message 28 has 2^27 ids of 4 bytes: half a GiB"),
                (30, "message 30 has 2^29 ids of 4 bytes: 2 GiB"),
                (31, "that counts one byte for an id; an INT32 has four"),
            ],
        ),
        "1 GiB is 2^30 bytes, which are 2^28 ids, and message n has 2^(n-1) ids.",
    ),
    "02-next": Exercise(
        equals(
            256,
            "add up the eight messages so far, and add the one new id",
            [
                (1, "that would be right if every request began with nothing kept; so far nothing has thrown ids away"),
                (129, "not only the last message comes back, but all eight of them"),
                (128, "not only the last message comes back, but all eight of them"),
                (255, "1 + 2 + 4 + ... + 128 = 255, and the new id comes on top"),
            ],
        ),
        "1 + 2 + 4 + ... + 128 = 255 ids are kept somewhere. The next message is these 255 and the new one, although "
        "it belongs to somebody else's request.",
    ),
    "02-quiz": Exercise(
        quiz(
            "bca",
            [
                "compare the English prompt with the Chinese one",
                "look at the slope of the line on the log2 axis",
                "what did the second user's first message begin with?",
            ],
        ),
        "Only some texts trigger it; a straight line on a log2 axis means a constant factor; and what is kept outlives "
        "its request.",
    ),
    "03-node": Exercise(
        equals(
            "inference",
            "write the name of one of the three nodes, in quotes",
            [
                ("postprocess", "what postprocess receives is as large already: it passes on what it gets"),
                ("preprocess", "preprocess sends one tensor for each request, and it is as long as the prompt"),
                ("ensemble_append", "the ensemble computes nothing; it hands tensors from node to node. Which node?"),
            ],
        ),
        "It is the only node that receives tensors of constant size and sends growing ones.",
    ),
    "03-previous": Exercise(
        equals(
            REPORTED_IDS[63:127],
            "message 7 has 64 ids; they stand at the end of what is pending, just before the newest id",
            [
                (REPORTED_IDS[64:], "that includes the newest id, which was not there when message 7 was sent"),
                (REPORTED_IDS[:64], "these are the first 64 ids: the 63 that were pending before, and one more"),
                (REPORTED_IDS[:127], "that is all that was pending: message 7, and what was pending before it"),
            ],
        ),
        "127 ids were pending. The first 63 had been pending already; message 7, 64 ids long, was put behind them.",
    ),
    "03-rule": Exercise(
        _update_rule,
        "Appending the whole message to what it already contains repeats every pending id: that is the doubling.",
    ),
    "03-trigger": Exercise(
        equals(
            {"a": False, "茶": False, " 匙": False, " 茶": True},
            "look at the number of tokens of each text, and play the rule through in your head",
            [
                (
                    {"a": False, "茶": True, " 匙": False, " 茶": True},
                    "茶 alone is a single token of this vocabulary; only with the space before it, it is three",
                ),
                (
                    {"a": False, "茶": False, " 匙": True, " 茶": True},
                    "two parts: the second message holds the whole character, it decodes, and the buffer is emptied",
                ),
                (
                    {"a": False, "茶": True, " 匙": True, " 茶": True},
                    "being Chinese is not what counts; how many tokens has each of them?",
                ),
            ],
        ),
        "Only a character in three parts leaves a buffer that cannot decode any more.",
    ),
    "03-quiz": Exercise(
        quiz(
            "bca",
            [
                "a node that only passes on what it gets is not the one to mend",
                "which instrument knew the shape of every tensor at both sides of every node?",
                "what makes the buffer empty again, and when can that no longer happen?",
            ],
        ),
        "The fault is where growth first appears, the trace shows it without a change to any model, and the buffer is "
        "only emptied by bytes that decode.",
    ),
}
