"""A bag of words: TF-IDF of words and word pairs, and logistic regression. It reads no order and
knows nothing from elsewhere, so it stands beside every model that was fine-tuned on the same rows.

`BagOfWords` prefers one response to another: the judge of RLHF, which no policy is trained against,
and the baseline of a reward model. It is saved as JSON, which restores every number to the bit and
runs no code when it is read. `task_logits` is the baseline of a fine-tuned task.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack, vstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from gpt_model.errors import UserError
from gpt_model.io import dump_json

if TYPE_CHECKING:
    from gpt_model.finetuning.entry import Form, SplitName
    from gpt_model.finetuning.examples import Example
    from gpt_model.rlhf.records import Ranking

FILE = "bag_of_words.json"
WORDS = 200_000  # the commonest words and word pairs
NGRAMS = (1, 2)
# scikit-learn's C, of which a task's validation rows choose: as many as a fine-tuning has epochs
STRENGTHS = (1.0, 3.0, 10.0)

Floats = NDArray[np.float64]


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
        if (fitted := _fitted(texts)) is None:
            raise UserError(
                f"Of {len(rankings)} rankings {len(usable)} have a better and a worse response "
                "with words in them: too few to learn from. Give more comparisons."
            )
        vectorizer, rows = fitted
        better, worse, weights, first = [], [], [], 0
        for ranking, pairs in usable:
            better += [first + index for index, _ in pairs]
            worse += [first + index for _, index in pairs]
            weights += [1 / len(pairs)] * len(pairs)
            first += len(ranking.responses)
        coefficients = _preferring(rows[better] - rows[worse], weights)
        words = tuple(vectorizer.get_feature_names_out())
        return BagOfWords(words, vectorizer.idf_, coefficients)

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
        dump_json(folder / FILE, parameters, ensure_ascii=False)

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


def _fitted(texts: Sequence[str]) -> tuple[TfidfVectorizer, csr_matrix] | None:
    """A vectorizer of `texts` and their rows [texts, words]; None where they have no words."""
    vectorizer = TfidfVectorizer(ngram_range=NGRAMS, max_features=WORDS)
    try:
        return vectorizer, vectorizer.fit_transform(texts)
    except ValueError:  # scikit-learn's, where there are no words
        return None


def _preferring(gaps: csr_matrix, weights: Sequence[float], strength: float = 1.0) -> Floats:
    """Coefficients [features] by which the better of two is known, from the `gaps`
    [pairs, features], better less worse.
    """
    # Both orders, as the order of a pair means nothing.
    labels = [1] * len(weights) + [0] * len(weights)
    model = LogisticRegression(C=strength, fit_intercept=False, max_iter=1000)
    model.fit(vstack([gaps, -gaps]), labels, sample_weight=[*weights, *weights])
    return np.asarray(model.coef_[0])


def task_logits(
    splits: Mapping[SplitName, Sequence[Example]],
    form: Form,
    classes: int,
    score: Callable[[Floats], float],
) -> Floats | None:
    """Log-probabilities [test, classes] of a task's test rows by a bag of words of its training
    rows; of multiple choice, each option's log-odds. None where the training rows have no words.

    `score` is of the logits [validation, classes]; it chooses the strength of regularization.
    """
    training = splits["training"]
    texts = [text for example in training for text in (*example.segments, *example.options)]
    if (fitted := _fitted(texts)) is None:
        return None
    features = partial(_option_features if form == "multiple_choice" else _features, fitted[0])
    if form == "similarity":
        features = partial(features, ordered=False)
    fit = _choosing if form == "multiple_choice" else _classifying
    rows = features(training)
    models = [fit(rows, training, classes, strength) for strength in STRENGTHS]
    validation = features(splits["validation"])
    return max(models, key=lambda model: score(model(validation)))(features(splits["test"]))


_Model = Callable[[csr_matrix], Floats]  # features [rows, features] -> logits [examples, classes]


def _classifying(
    rows: csr_matrix, training: Sequence[Example], classes: int, strength: float
) -> _Model:
    # A rating between two classes is a row of each, weighted by its share of it.
    numbers, labels, weights = zip(
        *(
            (number, label, share)
            for number, example in enumerate(training)
            for label, share in enumerate(example.target or np.eye(classes)[example.label])
            if share
        ),
        strict=True,
    )
    if len(set(labels)) == 1:
        only = np.where(np.arange(classes) == labels[0], 0.0, -np.inf)
        return lambda features: np.tile(only, (features.shape[0], 1))
    model = LogisticRegression(C=strength, max_iter=1000)
    model.fit(rows[list(numbers)], labels, sample_weight=weights)

    def logits(features: csr_matrix) -> Floats:
        values = np.full((features.shape[0], classes), -np.inf)
        values[:, model.classes_] = model.predict_log_proba(features)
        return values

    return logits


def _choosing(
    rows: csr_matrix, training: Sequence[Example], classes: int, strength: float
) -> _Model:
    right, wrong = [], []
    for number, example in enumerate(training):
        others = [option for option in range(classes) if option != example.label]
        right += [number * classes + example.label] * len(others)
        wrong += [number * classes + option for option in others]
    weights = [1 / (classes - 1)] * len(right)
    coefficients = _preferring(rows[right] - rows[wrong], weights, strength)
    return lambda features: np.asarray(features @ coefficients).reshape(-1, classes)


def _features(
    vectorizer: TfidfVectorizer, examples: Sequence[Example], ordered: bool = True
) -> csr_matrix:
    """[examples, features]: the words; of two texts both, or where their order means nothing the
    sum of both, and the words that both have.
    """
    bags = [
        vectorizer.transform(texts)
        for texts in zip(*(example.segments for example in examples), strict=True)
    ]
    if len(bags) == 1:
        return bags[0]
    first, second = bags
    alone = [first, second] if ordered else [first + second]
    return hstack([*alone, first.multiply(second)], format="csr")


def _option_features(vectorizer: TfidfVectorizer, examples: Sequence[Example]) -> csr_matrix:
    """[examples · options, features]: the words of each option, and those that the question has
    too. The question's others say nothing of which option is right.
    """
    questions = [example.segments[0] for example in examples for _ in example.options]
    options = vectorizer.transform([option for example in examples for option in example.options])
    return hstack([options, vectorizer.transform(questions).multiply(options)], format="csr")
