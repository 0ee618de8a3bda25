"""Inject faults into publishing: hostile fields of the card, pushes, licences, the target itself.

The Hub is one on this machine, tests/push_server.py. More of the card in
tests/publishing/test_card.py.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import push_server
import pytest
import tiny_recipe
import yaml
from typer.testing import CliRunner

from inheritune.cli.app import app
from inheritune.errors import MachineError, RecipeError, SourceError
from inheritune.model_files.card import join_front_matter, split_front_matter
from inheritune.model_files.directory import open_model
from inheritune.publishing.card import card_text
from inheritune.publishing.push import pack, push
from inheritune.reporting.embed import presentable
from inheritune.run.execute import execute
from inheritune.run_record.record import RunRecord
from inheritune.surgery.cut import inherit
from inheritune.system.progress import Progress
from inheritune.verification.model import verify_model


def typed(content):
    return RunRecord.model_validate(presentable(content))


@pytest.fixture(scope="module")
def made(tiny_reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "target"
    inherit(open_model(str(tiny_reference)), 2, out)
    (out / "figures").mkdir()
    (out / "figures/loss.png").write_bytes(b"no real picture")
    with_fields(out, license="apache-2.0")
    return out


@pytest.fixture
def target(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "target"))


@pytest.fixture
def hub(tmp_path: Path):
    with (
        push_server.serve(push_server.PushHub()) as hub,
        push_server.taken_for_the_hub(hub, tmp_path / "home"),
    ):
        yield hub


def with_fields(target: Path, **fields: object) -> None:
    known, body = split_front_matter((target / "README.md").read_text())
    (target / "README.md").write_text(join_front_matter(known | fields, body))


def unverified(path: Path, **options: object):
    """A parcel of a directory that was proven by another test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inheritune.publishing.push.verify_model", lambda target: [])
        return pack(path, **options)


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["push", *map(str, arguments)])


def test_weights_come_first_and_the_card_last_into_a_private_repository(target, hub):
    said: list[Progress] = []
    done = push(pack(target), "me/small", on_progress=said.append)
    repo = hub.repos["me/small"]
    news = [
        sorted(b.keys() - a.keys()) for a, b in zip(repo.commits, repo.commits[1:], strict=False)
    ]
    assert news[0] == ["model.safetensors"]
    assert {"config.json", "tokenizer.json", "inherit.json", "figures/loss.png"} <= set(news[1])
    assert news[2] == ["README.md"] and len(news) == 3
    sent = {p.relative_to(target).as_posix(): p.read_bytes() for p in target.rglob("*.*")}
    assert repo.files.items() >= sent.items()
    assert repo.private and done["private"] and done["url"] == f"{hub.url}/me/small"
    assert said[-1].done == said[-1].total == sum(file["bytes"] for file in done["files"])


@pytest.mark.parametrize("drop_after", range(5))
@pytest.mark.fault("E9")
def test_a_connection_that_breaks_never_leaves_a_card_without_weights(target, hub, drop_after):
    hub.drop_after = drop_after
    parcel = unverified(target)
    with pytest.raises(MachineError, match="me/small on the Hub broke") as raised:
        push(parcel, "me/small")
    assert raised.value.exit_code == 4 and "same command" in raised.value.hint
    repo = hub.repos["me/small"]
    for files in repo.commits:
        assert "README.md" not in files
        assert "config.json" not in files or "model.safetensors" in files
    hub.drop_after, arrived = None, set(hub.large)
    hub.log.clear()
    push(parcel, "me/small")
    assert {"README.md", "config.json", "model.safetensors"} <= repo.files.keys()
    assert not {Path(path).name for path in hub.uploads()} & arrived  # not sent twice


@pytest.mark.fault("E9")
def test_a_finished_push_is_repeated_without_a_commit_and_a_new_card_with_one(target, hub):
    push(unverified(target), "me/small")
    commits = len(hub.repos["me/small"].commits)
    hub.log.clear()
    assert push(unverified(target), "me/small")["commit"] is None
    assert not [path for _, path in hub.log if "commit" in path or "preupload" in path]
    with_fields(target, language="en")
    push(unverified(target), "me/small")
    assert len(hub.repos["me/small"].commits) == commits + 1


@pytest.mark.fault("E9")
def test_without_a_token_nothing_is_asked(target, tmp_path):
    with (
        push_server.serve(push_server.PushHub()) as hub,
        push_server.taken_for_the_hub(hub, tmp_path / "home", token=None),
    ):
        with pytest.raises(MachineError, match="no token") as raised:
            push(unverified(target), "me/small")
        assert "hf auth login" in raised.value.hint and not hub.repos


@pytest.mark.fault("E9")
def test_a_read_token_is_refused_before_a_repository_is_made(target, hub):
    hub.role = "read"
    with pytest.raises(MachineError, match="may only read"):
        push(unverified(target), "me/small")
    assert not hub.repos


@pytest.mark.fault("E9")
def test_a_repository_of_somebody_else_is_refused(target, hub):
    with pytest.raises(MachineError, match="does not let this account write to someone/small"):
        push(unverified(target), "someone/small")


@pytest.mark.parametrize("name", ["a/b/c", "a b", "me/..", "me/--x", "", "me/" + "x" * 200])
@pytest.mark.fault("E9")
def test_a_bad_name_is_refused(target, hub, name):
    with pytest.raises(RecipeError, match="is no repository name"):
        push(unverified(target), name)
    assert not hub.repos


@pytest.mark.fault("E9")
def test_a_dry_run_refuses_a_bad_name_too(target, hub):
    done = invoke(target, "--repo-id", "a b/c", "--dry-run", "--json")
    assert done.exit_code == 2 and "is no repository name" in json.loads(done.stdout)["message"]
    assert not hub.log


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.safetensors", "config.json"])
@pytest.mark.fault("E9")
def test_a_repository_with_other_content_is_never_written_to(target, hub, name):
    theirs = {"README.md": b"theirs", name: b"theirs"}
    hub.repos["me/taken"] = push_server.Repo(private=True, commits=[theirs])
    with pytest.raises(MachineError, match=f"already holds something else, such as {name}"):
        push(unverified(target), "me/taken")
    assert hub.repos["me/taken"].commits == [theirs]


def test_a_public_repository_is_not_filled_by_a_private_push(target, hub):
    hub.repos["me/open"] = push_server.Repo(private=False)
    with pytest.raises(MachineError, match="exists already and is public"):
        push(unverified(target), "me/open")
    push(unverified(target), "me/open", public=True)


def test_a_target_that_is_not_what_its_record_says_is_refused(target):
    data = bytearray((target / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (target / "model.safetensors").write_bytes(data)
    with pytest.raises(SourceError, match="digest"):
        pack(target)


def test_pickles_and_hidden_files_are_left_behind(target):
    for name in (".env", "optimizer.pt", "pytorch_model.bin"):
        (target / name).write_bytes(b"x")
    names = {file["path"] for file in unverified(target).files}
    assert not names & {".env", "optimizer.pt", "pytorch_model.bin"}


# -- the card


HOSTILE = ["---", "a\n---\nb: c", "{{ x }}", "a: b", "\"'`", "<script>x</script>"]


@pytest.mark.parametrize("value", HOSTILE, ids=lambda value: repr(value[:12]))
@pytest.mark.fault("E8")
def test_a_hostile_field_reads_back_equal_and_is_no_markup(value):
    score = {"task": value, "metrics": {value: {"value": 0.5}}}
    record = {
        "name": value,
        "notes": [value],
        "finished_at": value,
        "reference": {"model": value, "revision": value, "card": {"license": value}},
        "recipe": {"data": {"source": value, "split": value}},
        "result": {"val_loss": 3.25, "layers": 4, "reference_layers": 8},
        "evaluation": {"models": [{"role": "target", "scores": [score]}]},
    }
    text = card_text(typed(record), {"layer_map": [0], "reference": {"name": value}}, [])
    fields, body = split_front_matter(text)
    assert fields["license"] == fields["base_model"] == value
    assert fields["model-index"][0]["name"] == value
    assert fields["model-index"][0]["results"][1]["dataset"]["name"] == value
    assert yaml.safe_load(text.split("---\n", 1)[1].split("\n---\n\n# ")[0]) == fields
    assert body.startswith("\n# 4 of 8 layers of `")
    outside = re.sub(r"(`{3,})json\n.*?\n\1|`[^`\n]*`", "", body, flags=re.DOTALL)
    assert "<script" not in outside and "\n---\n" not in outside


@pytest.mark.fault("E8")
def test_a_megabyte_in_a_field_reads_back_equal():
    text = card_text(typed({"reference": {"card": {"license": "x" * 1_000_000}}}), {}, [])
    fields, body = split_front_matter(text)
    assert fields["license"] == "x" * 1_000_000 and len(body) < 10_000


# -- licences


@pytest.mark.parametrize("licence", [None, "unknown", "other", ""])
@pytest.mark.fault("E10")
def test_an_unknown_licence_is_refused_unless_it_is_stated(target, licence):
    with_fields(target, license=licence)
    with pytest.raises(RecipeError, match="licence of the reference is unknown") as raised:
        unverified(target)
    assert "--license" in raised.value.hint
    card = unverified(target, licence="mit").card
    assert split_front_matter(card)[0]["license"] == "mit"


@pytest.mark.fault("E10")
def test_a_named_other_licence_is_carried(target):
    with_fields(target, license="other", license_name="tiny-1.0", license_link="LICENSE")
    parcel = unverified(target)
    assert parcel.licence == "tiny-1.0"
    assert split_front_matter(parcel.card)[0]["license_link"] == "LICENSE"


@pytest.mark.parametrize("licence", ["cc-by-nc-4.0", "cc-by-nc-sa-4.0", "x-noncommercial"])
@pytest.mark.fault("E10")
def test_a_non_commercial_licence_is_carried_and_never_changed(target, licence):
    with_fields(target, license=licence)
    assert split_front_matter(unverified(target).card)[0]["license"] == licence
    with pytest.raises(RecipeError, match="cannot become mit"):
        unverified(target, licence="mit")
    with pytest.raises(RecipeError, match="public copy"):
        unverified(target, public=True)
    assert unverified(target, public=True, licence=licence).licence == licence


@pytest.mark.fault("E10")
def test_a_gated_base_is_carried_and_not_public_by_the_way(target, hub):
    hub.models["org/gated"] = {"gated": "manual", "cardData": {"license": "llama3"}}
    with_fields(target, base_model="org/gated", license=None)
    assert unverified(target).licence == "llama3"
    assert split_front_matter(unverified(target).card)[0]["license"] == "llama3"
    with pytest.raises(RecipeError, match="org/gated is gated"):
        unverified(target, public=True)


@pytest.mark.fault("E10")
def test_a_gated_base_is_found_where_the_connection_is_closed_once(target, hub, monkeypatch):
    monkeypatch.setattr("inheritune.model_files.download.hub.BACKOFF_S", (0.01, 0.01))
    hub.models["org/gated"] = {"gated": "manual", "cardData": {"license": "llama3"}}
    hub.drops.add("/api/models/org/gated")
    with_fields(target, base_model="org/gated", license="llama3")
    with pytest.raises(RecipeError, match="org/gated is gated"):
        unverified(target, public=True)
    assert not hub.drops


@pytest.mark.fault("E10")
def test_a_licence_that_only_the_base_names_is_carried_whole(target, hub):
    terms = {"license": "other", "license_name": "tiny-1.0", "license_link": "LICENSE"}
    hub.models["org/other"] = {"gated": False, "cardData": terms | {"tags": ["x"]}}
    with_fields(target, base_model="org/other", license=None)
    fields, _ = split_front_matter(unverified(target).card)
    assert terms.items() <= fields.items() and fields["tags"] == ["inheritune"]


@pytest.mark.fault("E10")
def test_a_commercial_licence_is_no_obstacle(target, hub):
    hub.models["org/free"] = {"gated": False, "cardData": {"license": "mit"}}
    with_fields(target, base_model="org/free")
    assert unverified(target, public=True).licence == "apache-2.0"


# -- the target


LOADED = """
import hashlib, json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
found, ids = [], torch.tensor([[5, 9, 2, 11]])
for path in sys.argv[1:]:
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    tokenizer = AutoTokenizer.from_pretrained(path)
    with torch.no_grad():
        logits = model(ids).logits
        text = model.generate(ids, max_new_tokens=8, do_sample=False)
    found.append({
        "logits": hashlib.sha256(logits.float().numpy().tobytes()).hexdigest(),
        "greedy": tokenizer.decode(text[0]),
        "inheritune": "inheritune" in sys.modules,
    })
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def run(tiny_reference: Path, tiny_text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = tiny_recipe.recipe_of(
        tiny_reference,
        tiny_text,
        train={"tokens": 512},
        grow={"add": 0},
        variants={"inherit": {"start": "inherit"}},
    )
    root = tmp_path_factory.mktemp("run") / "tiny"
    execute(tiny_recipe.as_file(recipe), root)
    return root


@pytest.mark.fault("E12")
def test_a_trained_target_opens_in_plain_transformers_with_equal_logits_and_text(run, tmp_path):
    alone = Path(shutil.copytree(run / "target", tmp_path / "alone"))
    places = (run / "variants/inherit/2-layers/model", alone)
    done = subprocess.run(
        [sys.executable, "-I", "-c", LOADED, *map(str, places)],
        env={"HF_HUB_OFFLINE": "1", "HOME": str(tmp_path), "PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found[0] == found[1] and not found[0]["inheritune"]


def test_a_trained_target_is_proven_by_the_digests_after_its_training(run, tmp_path):
    said = {finding.part: finding.text for finding in verify_model(open_model(str(run / "target")))}
    assert said["digests"].endswith("tensors, as after their training")
    broken = Path(shutil.copytree(run / "target", tmp_path / "broken"))
    data = bytearray((broken / "model.safetensors").read_bytes())
    data[-3] ^= 1
    (broken / "model.safetensors").write_bytes(data)
    with pytest.raises(SourceError, match="after its training it was"):
        list(verify_model(open_model(str(broken))))


def test_a_run_is_sent_with_its_card_and_figures(run, hub):
    with pytest.raises(RecipeError, match="licence of the reference is unknown"):
        unverified(run)
    push(unverified(run, licence="mit"), "me/tiny")
    files = hub.repos["me/tiny"].files
    assert split_front_matter(files["README.md"].decode())[0]["license"] == "mit"
    assert {"figures/val-loss.png", "training.json", "inherit.json"} <= files.keys()


# -- the command


def test_a_dry_run_prints_files_and_card_and_sends_nothing(target, hub):
    result = invoke(target, "--repo-id", "me/small", "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.stdout.strip() == (target / "README.md").read_text().strip()
    assert "model.safetensors" in result.stderr
    assert result.stderr.splitlines()[-1] == f"next: inheritune push {target} --repo-id me/small"
    assert not hub.log
    said = json.loads(invoke(target, "--repo-id", "me/small", "--dry-run", "--json").stdout)
    assert said["private"] and said["card"] == (target / "README.md").read_text()


def test_the_command_ends_with_the_address_and_one_line_of_python(target, hub):
    result = invoke(target, "--repo-id", "me/small")
    assert result.exit_code == 0, result.output
    *_, where, then = result.stderr.splitlines()
    assert where.startswith(f"{hub.url}/me/small (private)")
    assert then == 'next: AutoModelForCausalLM.from_pretrained("me/small")'


def test_a_refused_push_says_so_in_json(target, hub):
    hub.role = "read"
    result = invoke(target, "--repo-id", "me/small", "--json")
    assert result.exit_code == 4
    assert json.loads(result.stdout)["error"] == "MachineError"


def test_push_refuses_a_directory_that_is_no_target(tmp_path):
    result = invoke(tmp_path, "--repo-id", "me/small")
    assert result.exit_code == 3 and "no target" in result.stderr
