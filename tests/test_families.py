"""What the READMEs and the page of families tell follows from the hub configs."""

import json
import re
import sys
from pathlib import Path

import pytest
import timm
from zoo import NAMES

from timm_mobilevit_zoo.models.places import places

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "docs" / "tools"))  # a script has its own folder there
import families  # noqa: E402

HELD = [json.loads(path.read_text(encoding="utf-8")) for path in sorted((ROOT / "hub_configs").glob("*.json"))]


def test_the_readmes_and_the_cards_tell_what_the_hub_configs_hold():
    for page, text in families.pages(HELD).items():
        assert (ROOT / page).read_text(encoding="utf-8") == text


def test_the_readme_counts_names_and_files_of_weights():
    counted = re.compile(r"^(\d+) of (\d+) names have .* \((\d+) files, (\d+) with pinned digests\)\.$", re.MULTILINE)
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(page.splitlines()) <= 130
    found = [int(number) for number in counted.search(page).groups()]
    tags = timm.list_pretrained()
    ours = [tag for tag in tags if tag.partition(".")[0] in NAMES]
    pinned = sum(bool(place.sha256) for place in places().values()) + sum(bool(one["hub"]["repo_id"]) for one in HELD)
    assert found == [len({tag.partition(".")[0] for tag in ours}), len(NAMES), len(ours), pinned]


def test_a_card_has_each_tag_once_and_a_paper_to_cite():
    text = families.cards(HELD)
    for config in HELD:
        known = config["file"] or config["hub"]["repo_id"]
        assert text.count(f"| `{config['architecture']}{'.' + config['tag'] if known else ''}` |") == 1
    papers = {config["paper_ids"].removeprefix("arXiv:") for config in HELD if config["paper_ids"]}
    assert {*re.findall(r"eprint = \{([\d.]+)\}", text)} == papers
    one = next(config for config in HELD if config["architecture"] == NAMES[0] and families._is_default(config))
    said = r"^docs/papers\.json lacks arXiv:1\.2, A Paper: add its authors, year and key$"
    with pytest.raises(ValueError, match=said):
        families.cards([one | {"paper_ids": "arXiv:1.2", "paper_name": "A Paper"}])
