"""Error rates of transcripts."""

from collections.abc import Sequence

from bigmodels import errors


def word_error_rate(references: Sequence[str], transcripts: Sequence[str]) -> float:
    """Word substitutions, deletions and insertions over all texts, per word of the references.

    Words are what spaces separate. It may be over 1.

    Raises:
      UserError: if jiwer is not there.
    """
    return load_jiwer().wer(list(references), list(transcripts))


def character_error_rate(references: Sequence[str], transcripts: Sequence[str]) -> float:
    """`word_error_rate` of characters, spaces among them; none at the ends of a text counts."""
    return load_jiwer().cer(list(references), list(transcripts))


RATES = {'wer': word_error_rate, 'cer': character_error_rate}


def check(names: Sequence[str]) -> None:
    """Raises UserError for a name that is none of RATES, and if the library is not there."""
    for name in names:
        if name not in RATES:
            raise errors.unknown('error rate', name, RATES)
        load_jiwer()


def load_jiwer():
    """The library that counts; raises UserError if it is not there."""
    try:
        import jiwer
    except ImportError as error:
        raise errors.UserError(
            "Error rates of transcripts need the library 'jiwer': pip install 'bigmodels[speech]'."
        ) from error
    return jiwer
