"""card: the model card matches the weights."""

import hashlib

from edgeprune.demo import WEIGHTS


def test_card_contains_the_hash_of_the_weights():
    card = WEIGHTS.with_name("MODEL_CARD.md").read_text()
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() in card
    assert "AGPL-3.0" in card and "mAP50-95" in card
