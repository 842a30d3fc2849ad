"""Who is alive is judged by signs and times alone."""

from bigmodels.peers import Peers, Sign

FIRST, SECOND, THIRD = (Sign(index, 'host', 100 + index, beat=1) for index in range(3))


def beat(sign, beat, ended=None):
    return Sign(sign.index, sign.host, sign.pid, beat, ended)


def test_whoever_gives_signs_is_alive():
    peers = Peers(0, 2, timeout=10, now=0)
    for now in range(0, 100, 5):
        peers.read([beat(FIRST, now), beat(SECOND, now)], now)
        assert peers.trouble(now) is None
    assert not peers.all_gone()


def test_a_silent_process_is_named():
    peers = Peers(0, 3, timeout=10, now=0)
    for now in range(0, 11):
        peers.read([FIRST, SECOND, beat(THIRD, now)], now)
        assert peers.trouble(now) is None
    peers.read([FIRST, SECOND, beat(THIRD, 11)], 11)
    assert peers.trouble(11) == (
        'process 1 of 3 (host, pid 101) ended or does not answer: no sign for 10 s'
    )


def test_a_process_that_never_gave_a_sign_is_silent_from_the_start():
    peers = Peers(0, 2, timeout=10, now=100)
    peers.read([FIRST], 110)
    assert peers.trouble(110) is None
    peers.read([FIRST], 111)
    assert peers.trouble(111).startswith('process 1 of 2 ended or does not answer')


def test_where_nothing_can_be_read_it_is_the_first_process_that_is_gone():
    peers = Peers(2, 3, timeout=10, now=0)
    peers.read([FIRST, SECOND, THIRD], 5)
    assert peers.trouble(15) is None
    assert peers.trouble(16).startswith('process 0 of 3 (host, pid 100) ended')
    peers.read([beat(FIRST, 2), beat(SECOND, 2), THIRD], 17)  # it was only slow
    assert peers.trouble(18) is None


def test_the_reason_of_a_process_that_stopped_is_passed_on():
    peers = Peers(0, 3, timeout=10, now=0)
    peers.read([FIRST, beat(SECOND, 2, 'process 1 of 3 stopped: no data'), THIRD], 1)
    assert peers.trouble(1) == 'process 1 of 3 stopped: no data'
    assert not peers.all_gone()
    peers.read([FIRST, beat(SECOND, 2, 'so'), beat(THIRD, 2, 'so')], 2)
    assert peers.all_gone()


def test_a_process_that_is_done_may_be_silent():
    peers = Peers(0, 2, timeout=10, now=0)
    peers.read([FIRST, beat(SECOND, 2, '')], 1)
    assert peers.all_done()
    peers.read([FIRST, beat(SECOND, 2, '')], 50)
    assert peers.trouble(50) is None


def test_a_silent_process_is_gone_but_not_done():
    peers = Peers(0, 2, timeout=10, now=0)
    peers.read([FIRST, SECOND], 0)
    peers.read([FIRST, SECOND], 11)
    assert peers.all_gone()
    assert not peers.all_done()
