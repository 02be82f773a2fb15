"""The capstone's family of faults: each is a small change to a healthy node; with patches that look right and are not.

Spoiler: whoever wants to take the capstone should not read on.
"""

from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
Edits = tuple[tuple[str, str], ...]
NODES = ("encode", "generate", "decode")


@dataclass(frozen=True)
class Fault:
    """A fault of one node. `edits` make it of the healthy source; the others are edits of the faulty one."""

    name: str
    node: str
    law: str
    edits: Edits
    half_fixes: dict[str, Edits]
    solution: Edits = ()

    @property
    def source(self) -> str:
        """Source of the faulty node."""
        return edited(healthy(self.node), self.edits)

    @property
    def solved(self) -> str:
        """The faulty source, mended as a learner might do it."""
        return edited(self.source, self.solution)

    @property
    def patches(self) -> dict[str, str]:
        """Sources that a learner may hand in, and that do not mend the node."""
        return {name: edited(self.source, edits) for name, edits in self.half_fixes.items()}


def healthy(node: str) -> str:
    """Source of the healthy node."""
    return (HERE / f"{node}.py").read_text(encoding="utf-8")


def edited(source: str, edits: Edits) -> str:
    """The source with each piece replaced; every piece must be there exactly once."""
    for old, new in edits:
        if source.count(old) != 1:
            raise ValueError(f"{old!r} is there {source.count(old)} times")
        source = source.replace(old, new)
    return source


# --- pieces of the healthy sources ------------------------------------------------------------------------------------

IDS = "        return np.frombuffer(data, dtype=np.uint8).astype(np.int32)\n"
DATA = '        data = prompt.encode("utf-8")\n'
SHARED_NOTHING = '        """Nothing is shared between streams."""\n'
CONTEXT = "        context = list(prompt)  # what the model has seen so far: this state must grow, as a KV cache does\n"
LOOP = """        for step in range(length):
            token = self.next_token(context, step)
            context.append(token)
            yield [token], step + 1, step + 1 == length
"""
YIELD = "            yield [token], step + 1, step + 1 == length\n"
LENGTH = "        length = min(len(prompt), most)\n"
NO_STREAM = '        """No stream is open yet."""\n        self.decoders = {}\n'
TEXT = """        decoder = self.decoders.setdefault(stream_id, new_decoder())
        text = decoder.decode(bytes(ids), final=end)
        if end:
            del self.decoders[stream_id]
        return text
"""
SEND = "        self.send(request.get_response_sender(), response(text, ids, index, end, error), text)\n"

BUFFERED = LOOP.replace(
    "        for step", "        pending = []  # held back until it is text\n        for step"
).replace(
    YIELD,
    """            message = pending + [token]
            yield message, step + 1, step + 1 == length
            pending = [] if is_text(message) else pending + message
""",
)
PENDING = "            pending = [] if is_text(message) else pending + message\n"

HISTORY = LOOP.replace("        for step", "        message = []\n        for step").replace(
    YIELD, "            message.append(token)\n            yield message, step + 1, step + 1 == length\n"
)
MESSAGE = "            yield message, step + 1, step + 1 == length\n"

LATE = LOOP.replace("        for step", "        newest = None\n        for step").replace(
    YIELD,
    """            message, newest = [token if newest is None else newest], token
            yield message, step + 1, step + 1 == length
""",
)
LATE_LINE = "            message, newest = [token if newest is None else newest], token\n"

COUNTED = LOOP.replace("        for step", "        index = 0\n        for step").replace(
    YIELD,
    """            index += is_start(token)
            yield [token], index, step + 1 == length
""",
)
COUNT = "            index += is_start(token)\n"
IS_START = '''def is_start(token):
    """Whether a character begins with this byte."""
    return token & 0xC0 != 0x80


class TritonPythonModel'''

KEPT = """        decoder = self.decoders.setdefault(stream_id, new_decoder())
        text = self.kept.pop(stream_id, "") + decoder.decode(bytes(ids), final=end)
        text, self.kept[stream_id] = text[:-1], text[-1:]  # an accent may follow, and belongs to the character
        if end:
            del self.decoders[stream_id], self.kept[stream_id]
        return text
"""
KEPT_LINE = (
    "        text, self.kept[stream_id] = text[:-1], text[-1:]  # an accent may follow, and belongs to the character\n"
)

GROWING = """        decoder = self.decoders.setdefault(stream_id, new_decoder())
        self.texts[stream_id] = self.texts.get(stream_id, "") + decoder.decode(bytes(ids), final=end)
        text = self.texts[stream_id]
        if end:
            del self.decoders[stream_id], self.texts[stream_id]
        return text
"""

ONE_DECODER = """        text = self.decoder.decode(bytes(ids), final=end)
        return text
"""

POOL_IMPORT = ("import time\n", "import time\nfrom concurrent.futures import ThreadPoolExecutor\n")
POOL = '        """No stream is open yet."""\n        self.decoders = {}\n        self.pool = ThreadPoolExecutor(4)\n'
POOL_SEND = (
    "        self.pool.submit(self.send, request.get_response_sender(), response(text, ids, index, end, error), text)\n"
)

# --- the family -------------------------------------------------------------------------------------------------------

FAULTS = (
    Fault(
        "buffer appended",
        "generate",
        "doubling",
        ((LOOP, BUFFERED),),
        {
            "replace": ((PENDING, "            pending = [] if is_text(message) else message\n"),),
            "cleared at the end": ((PENDING, PENDING + "        pending.clear()\n"),),
            "cleared when long": ((PENDING, PENDING + "            pending = pending if len(pending) < 4 else []\n"),),
            "last two": ((PENDING, PENDING + "            pending = pending[-2:]\n"),),
            "sent once whole": (
                (
                    "            yield message, step + 1, step + 1 == length\n",
                    "            if is_text(message) or step + 1 == length:\n"
                    "                yield message, step + 1, step + 1 == length\n",
                ),
                (PENDING, "            pending = [] if is_text(message) else message\n"),
            ),
        },
        (
            (PENDING, ""),
            ("message = pending + [token]", "message = [token]"),
            ("        pending = []  # held back until it is text\n", ""),
        ),
    ),
    Fault(
        "answer kept",
        "generate",
        "history",
        ((LOOP, HISTORY),),
        {
            "cleared at the end": ((MESSAGE, MESSAGE + "        message.clear()\n"),),
            "cleared at blanks": ((MESSAGE, MESSAGE + "            message = [] if token == 32 else message\n"),),
            "last two": ((MESSAGE, MESSAGE.replace("message,", "message[-2:],")),),
            "first of them": ((MESSAGE, MESSAGE.replace("message,", "message[:1],")),),
        },
        (("            message.append(token)\n", "            message = [token]\n"),),
    ),
    Fault(
        "text kept",
        "decode",
        "history",
        ((TEXT, GROWING), (NO_STREAM, NO_STREAM + "        self.texts = {}\n")),
        {
            "last character": (
                ("        text = self.texts[stream_id]\n", "        text = self.texts[stream_id][-1:]\n"),
            ),
            "only at the end": (
                ("        text = self.texts[stream_id]\n", '        text = self.texts[stream_id] if end else ""\n'),
            ),
            "cleared at the end": (
                ("        return text\n", "        self.texts.clear() if end else None\n        return text\n"),
            ),
        },
        (
            (
                "        text = self.texts[stream_id]\n        if",
                "        text, self.texts[stream_id] = self.texts[stream_id], ''\n        if",
            ),
        ),
    ),
    Fault(
        "parallel consumer",
        "decode",
        "order",
        (POOL_IMPORT, (NO_STREAM, POOL), (SEND, POOL_SEND)),
        {
            "half the workers": (("ThreadPoolExecutor(4)", "ThreadPoolExecutor(2)"),),
            "more workers": (("ThreadPoolExecutor(4)", "ThreadPoolExecutor(16)"),),
            "a lock": (
                ("        self.pool = Thread", "        self.lock = threading.Lock()\n        self.pool = Thread"),
                ("import time\nfrom", "import threading\nimport time\nfrom"),
                ("        sender.send(message", "        with self.lock:\n            sender.send(message"),
            ),
            "numbered again": (
                (
                    POOL_SEND,
                    "        self.count = getattr(self, 'count', 0) + 1\n"
                    + POOL_SEND.replace("ids, index,", "ids, np.array([self.count], dtype=np.int32),"),
                ),
            ),
        },
        (("ThreadPoolExecutor(4)", "ThreadPoolExecutor(1)"),),
    ),
    Fault(
        "one decoder for all",
        "decode",
        "leak",
        ((TEXT, ONE_DECODER), (NO_STREAM, NO_STREAM.replace("self.decoders = {}", "self.decoder = new_decoder()"))),
        {
            "reset at the end": (
                ("        return text\n", "        self.decoder.reset() if end else None\n        return text\n"),
            ),
            "new at each message": (
                ("        text = self.decoder", "        self.decoder = new_decoder()\n        text = self.decoder"),
            ),
            "invalid bytes left out": (("        return text\n", '        return text.replace("\\ufffd", "")\n'),),
        },
        (
            (
                "        text = self.decoder.decode(",
                "        decoder = self.open.setdefault(stream_id, new_decoder())\n        text = decoder.decode(",
            ),
            ("self.decoder = new_decoder()", "self.open = {}"),
            ("        return text\n", "        self.open.pop(stream_id) if end else None\n        return text\n"),
        ),
    ),
    Fault(
        "context kept",
        "generate",
        "leak",
        (
            (SHARED_NOTHING, '        """The context of the model."""\n        self.context = []\n'),
            (
                CONTEXT,
                CONTEXT.replace("list(prompt)", "self.context") + "        context.extend(prompt)\n",
            ),
        ),
        {
            "cleared when long": ((YIELD, YIELD + "        if len(context) > 200:\n            context.clear()\n"),),
            "read from the end": (("return context[step]", "return context[-1]"),),
        },
        (("        context.extend(prompt)\n", "        context.clear()\n        context.extend(prompt)\n"),),
    ),
    Fault(
        "end of a cut answer lost",
        "generate",
        "lost_end",
        ((YIELD, "            yield [token], step + 1, step + 1 == len(prompt)\n"),),
        {
            "at the limit alone": (("step + 1 == len(prompt)", "step + 1 == most"),),
            "on the first message": (("step + 1 == len(prompt)", "step == 0"),),
            "on every message": (("step + 1 == len(prompt)", "True"),),
            "one more message": (("        for step", "        yield [], length + 1, True\n        for step"),),
        },
        (("step + 1 == len(prompt)", "step + 1 == min(most, len(prompt))"),),
    ),
    Fault(
        "index counts characters",
        "generate",
        "stale_index",
        ((LOOP, COUNTED), ("class TritonPythonModel", IS_START)),
        {
            "from 0": (("yield [token], index,", "yield [token], step,"),),
            "two for others": ((COUNT, "            index += 1 if token < 128 else 2\n"),),
            "length of the context": (("yield [token], index,", "yield [token], len(context),"),),
        },
        ((COUNT, "            index += 1\n"),),
    ),
    Fault(
        "id of the step before",
        "generate",
        "late",
        ((LOOP, LATE),),
        {
            "first left out": ((LATE_LINE, LATE_LINE + "            if step == 0:\n                continue\n"),),
            "one too far": ((LATE_LINE, "            message = [context[min(step + 1, length - 1)]]\n"),),
            "both": (
                (LATE_LINE, "            message, newest = [token] if newest is None else [newest, token], token\n"),
            ),
        },
        ((LATE_LINE, "            message = [token]\n"),),
    ),
    Fault(
        "long integers",
        "encode",
        "dtype",
        (
            (
                IDS,
                f"        if prompt.isascii():\n    {IDS}        return np.array(list(data))\n",
            ),
        ),
        {
            "bytes": (("np.array(list(data))", "np.array(list(data), dtype=np.uint8)"),),
            "short": (("np.array(list(data))", "np.array(list(data), dtype=np.int16)"),),
            "characters": (("np.array(list(data))", "np.array([ord(one) for one in prompt], dtype=np.int32)"),),
            "others left out": (
                ("np.array(list(data))", "np.array([one for one in data if one < 128], dtype=np.int32)"),
            ),
        },
        (("np.array(list(data))", "np.array(list(data), dtype=np.int32)"),),
    ),
    Fault(
        "character held back",
        "decode",
        "held_back",
        ((TEXT, KEPT), (NO_STREAM, NO_STREAM + "        self.kept = {}\n")),
        {
            "flushed at the end": (
                (KEPT_LINE, "        if not end:\n    " + KEPT_LINE),
                (
                    "        if end:\n            del self.decoders[stream_id], self.kept[stream_id]\n",
                    "        if end:\n            del self.decoders[stream_id]\n",
                ),
            ),
            "two kept": ((KEPT_LINE, KEPT_LINE.replace("[:-1]", "[:-2]").replace("[-1:]", "[-2:]")),),
            "others at once": (
                (KEPT_LINE, "        if text.isascii():\n    " + KEPT_LINE),
                (
                    "            del self.decoders[stream_id], self.kept[stream_id]\n",
                    "            del self.decoders[stream_id]\n            self.kept.pop(stream_id, None)\n",
                ),
            ),
        },
        ((KEPT_LINE, "        self.kept[stream_id] = ''\n"),),
    ),
    Fault(
        "characters made simple",
        "encode",
        "altered",
        (
            ("import numpy as np\n", "import unicodedata\n\nimport numpy as np\n"),
            (DATA, '        data = unicodedata.normalize("NFKC", prompt).encode("utf-8")\n'),
        ),
        {
            "another form": (("NFKC", "NFKD"),),
            "composed": (("NFKC", "NFC"),),
            "decomposed": (("NFKC", "NFD"),),
        },
        (('unicodedata.normalize("NFKC", prompt)', "prompt"),),
    ),
    Fault(
        "prompt cut",
        "encode",
        "altered",
        ((DATA, '        data = prompt.encode("utf-8")[:24]\n'),),
        {
            "longer": (("[:24]", "[:40]"),),
            "characters": (('prompt.encode("utf-8")[:24]', 'prompt[:24].encode("utf-8")'),),
            "the end": (("[:24]", "[-24:]"),),
        },
        (("[:24]", ""),),
    ),
)
