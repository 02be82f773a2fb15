"""The array from the field, and the prompt that makes this lab's model stream the same tokens.

Source: triton-inference-server/server issues 7378 and 7383, June 2024; the array is in ``data/reported_message.json``.
"""

import json
from pathlib import Path

REPORTED_IDS: list[int] = json.loads(
    (Path(__file__).parent / "data" / "reported_message.json").read_text(encoding="utf-8")
)["received_token_ids"]

# The eight tokens that the array is made of, in order; in the Qwen vocabulary they spell " 茶匙香草精（".
REPORTED_TOKENS = [8908, 234, 114, 103081, 99662, 99808, 99219, 9909]

# "Ingredients of vanilla ice cream: 2 cups light cream, 1 cup milk, 3/4 cup sugar, 1", without a space at the end.
REPORTED_PROMPT = "香草冰淇淋的配料：2 杯淡奶油，1 杯牛奶，3/4 杯糖，1"
