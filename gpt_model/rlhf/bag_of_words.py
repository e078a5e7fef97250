"""Words and nothing else: a logistic regression on the difference of two responses' TF-IDF words
and pairs of words.

It is the judge that the policy is never trained against, and the baseline beside the reward model.
Kept as JSON, which gives every number back to the bit and runs nothing when it is read.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gpt_model.errors import UserError

if TYPE_CHECKING:
    from gpt_model.rlhf.records import Ranking

FILE = "bag_of_words.json"
WORDS = 200_000  # the commonest, and pairs of them
NGRAMS = (1, 2)


@dataclass(frozen=True)
class BagOfWords:
    """`words`: words and pairs of words, sorted; of each its inverse document frequency and its
    weight in a text's score.
    """

    words: tuple[str, ...]
    idf: NDArray[np.float64]
    coefficients: NDArray[np.float64]

    @staticmethod
    def fit(rankings: Sequence[Ranking]) -> BagOfWords:
        """Learnt from all pairs of the rankings, each ranking of the same weight. Raises UserError
        where there is nothing to learn from.
        """
        from scipy.sparse import vstack
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.linear_model import LogisticRegression

        learnt = [(ranking, pairs) for ranking in rankings if (pairs := ranking.pairs())]
        texts = [response.text for ranking, _ in learnt for response in ranking.responses]
        vectorizer = TfidfVectorizer(ngram_range=NGRAMS, max_features=WORDS)
        try:
            rows = vectorizer.fit_transform(texts)
        except ValueError:  # the library's: there are no words
            raise UserError(
                f"Of {len(rankings)} rankings {len(learnt)} have a better and a worse response with words in them: too few to learn from. "
                "Give more comparisons."
            ) from None
        better, worse, weights, first = [], [], [], 0
        for ranking, pairs in learnt:
            better += [first + place for place, _ in pairs]
            worse += [first + place for _, place in pairs]
            weights += [1 / len(pairs)] * len(pairs)
            first += len(ranking.responses)
        gaps = rows[better] - rows[worse]
        labels = [1] * len(better) + [0] * len(
            better
        )  # both orders: which is named first is nobody's judgement
        model = LogisticRegression(fit_intercept=False, max_iter=1000)
        model.fit(vstack([gaps, -gaps]), labels, sample_weight=weights * 2)
        return BagOfWords(
            tuple(vectorizer.get_feature_names_out()), vectorizer.idf_, model.coef_[0]
        )

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """More is better. The difference of two is the log-odds that the first is preferred."""
        if not len(texts):
            return np.zeros(0)
        return np.asarray(self._vectorizer.transform(texts) @ self.coefficients)

    def scores(self, rankings: Sequence[Ranking]) -> list[list[float]]:
        """Of each response of each ranking."""
        flat = iter(
            self.score(
                [response.text for ranking in rankings for response in ranking.responses]
            ).tolist()
        )
        return [[next(flat) for _ in ranking.responses] for ranking in rankings]

    @cached_property
    def _vectorizer(self) -> Any:
        from sklearn.feature_extraction.text import TfidfVectorizer

        vectorizer = TfidfVectorizer(
            ngram_range=NGRAMS, vocabulary={word: place for place, word in enumerate(self.words)}
        )
        vectorizer.idf_ = self.idf
        return vectorizer

    def save(self, folder: Path) -> None:
        kept = {
            "words": list(self.words),
            "idf": self.idf.tolist(),
            "coefficients": self.coefficients.tolist(),
        }
        (folder / FILE).write_text(json.dumps(kept, ensure_ascii=False) + "\n", encoding="utf-8")

    @staticmethod
    def load(folder: Path) -> BagOfWords:
        path = folder / FILE
        if not path.is_file():
            raise UserError(
                f"{folder} has no {FILE}: it is not a judge. Give the folder of a judge artifact."
            )
        kept = json.loads(path.read_text(encoding="utf-8"))
        return BagOfWords(
            tuple(kept["words"]), np.array(kept["idf"]), np.array(kept["coefficients"])
        )
