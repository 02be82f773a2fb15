"""Continuous batching: many sequences are decoded together, and each joins and leaves at any iteration."""

from dataclasses import dataclass
from itertools import accumulate


@dataclass(eq=False)
class Sequence:
    """One text that is being generated. Its KV cache is its own, and is gone when the sequence is.

    `rows` are the tokens that the model has not read yet: the prompt at first, then the newest one. `position` is where
    they start, `left` is how many tokens may still come, and `ended` says that none will.
    """

    rows: object
    cache: tuple
    left: int
    position: int = 0
    ended: bool = False


class Batch:
    """The sequences that are decoded together; at most `size` of them, each with a KV cache."""

    def __init__(self, transformer, size):
        self.transformer = transformer
        self.size = size
        self.sequences = []

    @property
    def full(self):
        """Whether no further sequence may join."""
        return len(self.sequences) >= self.size

    def join(self, prompt_ids, max_tokens):
        """Add a sequence, whose first token comes with one of the next iterations. A bad prompt is a ValueError."""
        rows = self.transformer.prompt_rows(prompt_ids)
        left = min(max_tokens, self.transformer.context - rows.shape[0])
        sequence = Sequence(rows, self.transformer.new_cache(), left)
        self.sequences.append(sequence)
        return sequence

    def leave(self, sequence):
        """Take a sequence out, at any time; its KV cache is released with it."""
        if sequence in self.sequences:
            self.sequences.remove(sequence)
            sequence.cache = None

    def iterate(self, sequences):
        """Decode once: a token id for each of these sequences, in pairs. A sequence that has come to its end leaves.

        Its last pair holds None where the model's end token came in place of a token. A sequence whose prompt is not
        read yet may have to wait for a later iteration; the others never wait.
        """
        made = [(one, self._forward(one)) for one in self._next_prompts(sequences)]
        running = [one for one in sequences if one.position > 0]
        if len(running) == 1:  # one stream by itself costs no more than without batching
            made.append((running[0], self._forward(running[0])))
        elif running:
            made += self._step(running)
        return [(one, self._accept(one, row)) for one, row in made]

    def _next_prompts(self, sequences):
        """The first of the unread prompts, which together are no longer than one context.

        To read a prompt takes time with its length. Without a bound, a crowd of newcomers would hold up those who are
        in the middle of their texts; with this one, at most as long as the longest prompt there can be.
        """
        unread = [one for one in sequences if one.position == 0]
        totals = accumulate(one.rows.shape[0] for one in unread)
        return [one for one, total in zip(unread, totals, strict=True) if total <= self.transformer.context]

    def _forward(self, one):
        return int(self.transformer.xp.argmax(self.transformer.forward(one.rows, one.cache, one.position)))

    def _step(self, running):
        model = self.transformer
        rows = model.xp.concat([one.rows for one in running])
        logits = model.step(rows, [one.position for one in running], [one.cache for one in running])
        chosen = model.xp.argmax(logits, axis=1)
        return [(one, int(chosen[i])) for i, one in enumerate(running)]

    def _accept(self, one, row):
        token = self.transformer.ids[row]
        one.position += one.rows.shape[0]
        one.rows = self.transformer.place_rows([row])
        one.left -= 1
        one.ended = one.left == 0 or token == self.transformer.eos
        if one.ended:
            self.leave(one)
        return None if token == self.transformer.eos else token
