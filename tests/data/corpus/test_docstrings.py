import pytest

from potstill.data.corpus.docstrings import Docstrings, installed, prose, read_source, source_files
from potstill.errors import DataError


def test_only_paragraphs_of_prose_are_kept():
    docstring = """Compute the mean of all values that are not missing in the given table.

        The result is a number, or a row of numbers where an axis
        is given, and the input is never changed.

        .. versionadded:: 1.2
           This directive text should not be part of the corpus at all.

        Parameters
        ----------
        axis : int, optional
            The axis along which the mean is taken; by default it is the first one.

        Args:
            values (`list[int]`, *optional*, defaults to 3): The values of which the mean shall be taken here.

        >>> mean([1, 2, 3]) and some words that would read as English otherwise
        2 and this output belongs to the prompt above, so it is left out

            >>> indented(1) and more words that would read as English otherwise
            and an indented output that would read as English otherwise

            The indented paragraph after a doctest is prose again and it is kept.

        For example::

            this is code that reads like a sentence but it is indented as code

        ```
        fenced text that also reads like a sentence but which is code
        ```

        | a table | with rows | of words | and more | words | here | too |

        - The first item of a list, which is long enough to be kept here.
        See :class:`~module.Thing` and the `manual <https://example.org>`_ for more words about it.
        """
    assert prose(docstring) == [
        "Compute the mean of all values that are not missing in the given table.",
        "The result is a number, or a row of numbers where an axis is given, and the input is never changed.",
        "The axis along which the mean is taken; by default it is the first one.",
        "The values of which the mean shall be taken here.",
        "The indented paragraph after a doctest is prose again and it is kept.",
        "The first item of a list, which is long enough to be kept here. "
        "See `module.Thing` and the manual for more words about it.",
    ]


@pytest.mark.parametrize("text", ["Too short.", "x = [1, 2, 3]; y = f(x) + 4; z = {5: 6}; w = 7 ** 8", ""])
def test_text_that_is_not_english(text):
    assert prose(text) == []


def test_all_kinds_of_docstrings_are_read(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        '"""The module has a docstring that is long enough to be kept."""\n'
        "if True:\n"
        "    class A:\n"
        '        """The class has a docstring that is long enough to be kept."""\n'
        "        async def f(self):\n"
        "            '''The method has a docstring that is long enough to be kept.'''\n"
        '            """Another string is no docstring even though it is long enough."""\n'
    )
    assert read_source(str(path)) == [
        f"The {what} has a docstring that is long enough to be kept." for what in ("module", "class", "method")
    ]
    path.write_text('"""The module does not parse, so nothing of it is kept here."""\ndef (')
    assert read_source(str(path)) == []
    assert read_source(str(tmp_path / "missing.py")) == []


def test_files_of_tests_are_skipped():
    files = source_files(installed(["python", "pytest"], "key"))
    assert any(file.endswith("/argparse.py") for file in files)
    assert any("/_pytest/" in file for file in files)
    assert not any("/test/" in file or "/tests/" in file or "site-packages/numpy" in file for file in files)


def test_corpus_of_a_package(tmp_path):
    source = Docstrings(("Pytest",), None, tmp_path / "one")
    source.check()
    text = source.write_texts(1)
    lines = text.read_text().split("\n")[:-1]
    assert len(lines) > 300
    assert len(set(lines)) == len(lines)
    assert [line for batch in source.batches(1000) for line in batch] == lines
    few = Docstrings(("pytest",), 5, tmp_path / "one")
    assert list(few.batches(10**6)) == [lines[:5]]
    assert few.fingerprint() != source.fingerprint()
    again = Docstrings(("pytest",), None, tmp_path / "two")
    assert again.write_texts(2).read_bytes() == text.read_bytes()
    assert again.fingerprint() == source.fingerprint()


def test_a_package_that_is_not_installed(tmp_path):
    with pytest.raises(DataError, match=r"^data\.packages: .*'no-such-thing'"):
        Docstrings(("no_such_thing",), None, tmp_path).check()
