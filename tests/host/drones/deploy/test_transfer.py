"""transfer: the distribution of pieces over connections."""

from edgeprune.drones.deploy import transfer


def test_a_late_piece_is_sent_over_another_connection(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(transfer, "time", type("", (), {"monotonic": staticmethod(lambda: clock[0])}))
    a, b = (transfer.BundlePiece(name, 0, 10, "0" * 64) for name in "ab")
    work = transfer._Work([a, b])
    assert (work.take(wait=True), work.take(wait=True), work.take(wait=False)) == (a, b, None)
    work.arrived(b)
    clock[0] = 100.0
    assert work.take(wait=True) == a
    work.give_back([a])  # the first connection broke; the piece waits for one other connection only
    work.arrived(a)
    work.arrived(a)
    assert work.done and work.arrived_bytes == 20 and work.take(wait=True) is None


def test_a_slow_but_answering_connection_is_not_late(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(transfer, "time", type("", (), {"monotonic": staticmethod(lambda: clock[0])}))
    a, b, c = (transfer.BundlePiece(name, 0, 10, "0" * 64) for name in "abc")
    work = transfer._Work([a, b, c])
    assert [work.take(wait=True) for _ in range(3)] == [a, b, c]  # a and b over one connection
    clock[0] = 5.0
    work.arrived(a, behind=[b])
    assert work.take(wait=True) == c
