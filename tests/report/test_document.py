"""report.json and report.html in a folder."""

import json

import pytest

from gossamer.errors import DataError, FileError
from gossamer.report.document import load_report, write_report
from reports import a_document


def test_a_written_report_is_read_again(tmp_path):
    document = a_document()
    paths = write_report(document, tmp_path / "new" / "out")
    assert [path.name for path in paths] == ["report.json", "report.html"]
    assert load_report(paths[0]) == load_report(tmp_path / "new" / "out") == document
    assert sorted(path.name for path in paths[0].parent.iterdir()) == ["report.html", "report.json"]


def test_the_page_comes_from_the_json_alone(tmp_path):
    (json_path, page) = write_report(a_document(), tmp_path / "a")
    (_, again) = write_report(load_report(json_path), tmp_path / "b")
    assert page.read_text() == again.read_text()


def test_truncated_at_any_place_is_refused(tmp_path):
    path, _ = write_report(a_document(), tmp_path)
    text = path.read_text().rstrip()
    for length in range(0, len(text), 97):
        path.write_text(text[:length])
        with pytest.raises(FileError, match=r"report\.json: is not a report \(no valid JSON"):
            load_report(path)


@pytest.mark.parametrize("text", ["[]", "3", '{"format": 1}', '{"nodes": []}', "null"])
def test_foreign_json_is_refused(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(FileError, match=r"report\.json: is no report that can be shown \(.*\); name a report\.json of ours"):
        load_report(tmp_path)


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "report.json").write_bytes(b"\x80\x02}q\x00.")
    with pytest.raises(FileError, match="is not a report"):
        load_report(tmp_path)


def test_a_missing_report_is_named(tmp_path):
    with pytest.raises(FileError, match=r"report\.json: cannot be read \(No such file or directory\); name an existing report"):
        load_report(tmp_path)


def test_a_foreign_document_writes_nothing(tmp_path):
    with pytest.raises(DataError, match="this is no report of ours"):
        write_report({"model": "x"}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError, match=r"report\.json: cannot be written"):
        write_report(a_document(), tmp_path / "file" / "out")


def test_the_json_is_strict(tmp_path):
    layers = [{"name": "exact", "channels_before": 4, "channels_after": 4, "error_db": float("inf")}]
    path, _ = write_report(a_document(layers=layers), tmp_path)
    assert load_report(path)["layers"][0]["error_db"] is None
    json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
