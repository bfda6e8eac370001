"""What could not be looked up, and what it was taken for."""


class Assumed:
    """Sentences, each once."""

    def __init__(self) -> None:
        self.sentences: list[str] = []

    def add(self, sentence: str) -> None:
        if sentence not in self.sentences:
            self.sentences.append(sentence)
