"""A bag of words as a judge: logistic regression on the difference of two responses' TF-IDF of
words and word pairs.

No policy is trained against it, and it is the baseline beside the reward model. Saved as JSON,
which restores every number to the bit and runs no code when it is read.
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
from scipy.sparse import vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from gpt_model.errors import UserError

if TYPE_CHECKING:
    from gpt_model.rlhf.records import Ranking

FILE = "bag_of_words.json"
WORDS = 200_000  # the commonest words and word pairs
NGRAMS = (1, 2)


@dataclass(frozen=True)
class BagOfWords:
    words: tuple[str, ...]  # words and word pairs, sorted
    idf: NDArray[np.float64]  # [words], inverse document frequency
    coefficients: NDArray[np.float64]  # [words]

    @staticmethod
    def fit(rankings: Sequence[Ranking]) -> BagOfWords:
        """Fitted to all pairs of the rankings, each ranking with the same weight. Raises UserError
        where there is nothing to learn from.
        """
        usable = [(ranking, pairs) for ranking in rankings if (pairs := ranking.pairs())]
        texts = [response.text for ranking, _ in usable for response in ranking.responses]
        vectorizer = TfidfVectorizer(ngram_range=NGRAMS, max_features=WORDS)
        try:
            rows = vectorizer.fit_transform(texts)
        except ValueError:  # scikit-learn's, where there are no words
            raise UserError(
                f"Of {len(rankings)} rankings {len(usable)} have a better and a worse response "
                "with words in them: too few to learn from. Give more comparisons."
            ) from None
        better, worse, weights, first = [], [], [], 0
        for ranking, pairs in usable:
            better += [first + index for index, _ in pairs]
            worse += [first + index for _, index in pairs]
            weights += [1 / len(pairs)] * len(pairs)
            first += len(ranking.responses)
        gaps = rows[better] - rows[worse]
        # Both orders, as the order of a pair's responses means nothing.
        labels = [1] * len(better) + [0] * len(better)
        model = LogisticRegression(fit_intercept=False, max_iter=1000)
        model.fit(vstack([gaps, -gaps]), labels, sample_weight=weights * 2)
        words = tuple(vectorizer.get_feature_names_out())
        return BagOfWords(words, vectorizer.idf_, model.coef_[0])

    def score(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """[texts]; higher is better. A difference is the log-odds that the first is preferred."""
        if not len(texts):
            return np.zeros(0)
        return np.asarray(self._vectorizer.transform(texts) @ self.coefficients)

    def scores(self, rankings: Sequence[Ranking]) -> list[list[float]]:
        """[rankings][responses]."""
        texts = [response.text for ranking in rankings for response in ranking.responses]
        flat = iter(self.score(texts).tolist())
        return [[next(flat) for _ in ranking.responses] for ranking in rankings]

    @cached_property
    def _vectorizer(self) -> Any:
        vectorizer = TfidfVectorizer(
            ngram_range=NGRAMS, vocabulary={word: index for index, word in enumerate(self.words)}
        )
        vectorizer.idf_ = self.idf
        return vectorizer

    def save(self, folder: Path) -> None:
        parameters = {
            "words": list(self.words),
            "idf": self.idf.tolist(),
            "coefficients": self.coefficients.tolist(),
        }
        (folder / FILE).write_text(
            json.dumps(parameters, ensure_ascii=False) + "\n", encoding="utf-8"
        )

    @staticmethod
    def load(folder: Path) -> BagOfWords:
        path = folder / FILE
        if not path.is_file():
            raise UserError(
                f"{folder} has no {FILE}: it is not a judge. Give the folder of a judge artifact."
            )
        parameters = json.loads(path.read_text(encoding="utf-8"))
        return BagOfWords(
            tuple(parameters["words"]),
            np.array(parameters["idf"]),
            np.array(parameters["coefficients"]),
        )
