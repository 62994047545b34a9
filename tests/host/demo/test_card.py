"""card: that of the weights names them."""

import hashlib

from edgeprune.demo import WEIGHTS


def test_the_card_names_this_file():
    card = WEIGHTS.with_name("MODEL_CARD.md").read_text()
    assert hashlib.sha256(WEIGHTS.read_bytes()).hexdigest() in card
    assert "AGPL-3.0" in card and "mAP50-95" in card
