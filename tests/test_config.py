from __future__ import annotations

from pathlib import Path

import pytest

from aiosd import config
from aiosd.errors import ConfigError

FAR = '[models.backends.far]\nkind = "openai"\nmodel = "m"\nurl = "https://api.example.com/v1"\n'


def test_no_file_is_a_fine_start(tmp_path: Path) -> None:
    assert config.load(tmp_path / "config.toml") == config.Config()


def test_every_key_of_the_readme_loads(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(
        """
        default_permissions = ["read"]
        [models.tiers]
        fast = ["small", "extractive"]
        [models.backends.small]
        kind = "ollama"
        url = "http://127.0.0.1:11434"
        model = "llama3.1:8b"
        slots = 2
        [models.backends.cloud]
        kind = "openai"
        url = "https://api.example.com/v1"
        model = "m"
        key_env = "EXAMPLE_KEY"
        price_in = 2.5
        price_out = 10
        [agents.reviewer]
        system = "You review."
        tier = "capable"
        [budget]
        day_usd = 2
        [tools]
        paths = ["a", "/b"]
        """
    )
    loaded = config.load(path)
    assert loaded.models.tiers == {"fast": ("small", "extractive")}
    assert loaded.models.backends["small"].is_local
    assert not loaded.models.backends["cloud"].is_local
    assert loaded.models.backends["cloud"].price_out == 10.0
    assert loaded.agents["reviewer"].tier == "capable"
    assert loaded.budget.day_usd == 2.0


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("nonsense = 1", "unknown field `nonsense`"),
        ("[models]\nx = 1", "models: Object contains unknown field `x`"),
        (
            '[models.backends.small]\nkind = "ollama"\nmodel = "m"\nslots = "2"',
            "models.backends.small.slots: Expected `int`",
        ),
        (
            '[models.backends.a]\nkind = "x"\nmodel = "m"',
            "models.backends.a.kind: Invalid enum value 'x'",
        ),
        (
            '[models.backends.a]\nkind = "ollama"\nsllots = 2',
            "models.backends.a: Object contains unknown field",
        ),
        ('[models.backends.a]\nkind = "ollama"', "models.backends.a.model: expected the name of a model"),
        (
            '[models.backends.a]\nkind = "openai"\nmodel = "m"\nurl = "nope"',
            "models.backends.a.url: expected http",
        ),
        ('[models.backends.a]\nkind = "openai"\nmodel = "m"', "models.backends.a.url: expected the server's"),
        (
            '[models.backends.a]\nkind = "ollama"\nmodel = "m"\nurl = "http://[::1"',
            "models.backends.a.url: expected http",
        ),
        (
            '[models.backends.a]\nkind = "ollama"\nmodel = "m"\nurl = "http://h:99999"',
            "models.backends.a.url: expected http",
        ),
        (
            '[models.backends.a]\nkind = "ollama"\nmodel = "m"\ncontext = 0',
            "models.backends.a.context: expected a number of tokens",
        ),
        ('[models.backends.a]\nkind = "ollama"\nmodel = "m"\nslots = 0', "models.backends.a.slots"),
        (
            '[models.backends.a]\nkind = "ollama"\nmodel = "m"\nprice_in = -1',
            "models.backends.a: expected prices",
        ),
        ('[models.backends.a]\nkind = "gguf"', "models.backends.a.path: expected the path of a .gguf file"),
        ('[models.backends.a]\nkind = "gguf"\npath = 3', "models.backends.a.path: Expected `str"),
        (
            '[models.backends.a]\nkind = "gguf"\npath = "x"\ncontext = 255',
            "models.backends.a.context: expected tokens >= 256, got 255",
        ),
        (
            '[models.backends.a]\nkind = "gguf"\npath = "x"\nmodel = "m"',
            "models.backends.a.model: a gguf has none",
        ),
        (
            '[models.backends.a]\nkind = "gguf"\npath = "x"\nkey_env = "K"',
            "models.backends.a.key_env: a gguf has none",
        ),
        (
            '[models.backends.a]\nkind = "ollama"\nmodel = "m"\npath = "x"',
            "models.backends.a.path: expected only with",
        ),
        ('[models.tiers]\nfast = ["nobody"]', "models.tiers.fast[0]: no backend `nobody`"),
        ("[models.tiers]\nquick = []", "models.tiers"),
        ("agents = 3", "agents: expected a table"),
        ('[agents.a]\ntier = "huge"', "agents.a.tier"),
        ("default_permissions = 3", "default_permissions: Expected `array`"),
        ("[budget]\nday_usd = -1", "budget.day_usd"),
        (FAR + '[memory]\nembedder = "far"', "memory.embedder: `far` is remote"),
        (FAR + '[memory]\nembedder = "near"', "memory.embedder: no embedder and no backend `near`"),
        ('[memory]\nembedder = "bert"', "memory.embedder"),
        ("a = [", "not TOML"),
        ("a = '\xff'", "not TOML"),
    ],
)
def test_an_error_names_file_key_path_and_what_was_expected(tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError) as caught:
        config.load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert where in str(caught.value)


@pytest.mark.parametrize(
    ("url", "local"),
    [
        ("http://127.0.0.1:1", True),
        ("http://localhost:1", True),
        ("http://[::1]:1", True),
        ("http://127.9.9.9", True),
        ("http://192.168.1.2", False),
        ("https://localhost.example.com", False),
        ("https://127.example.com", False),
        (None, True),
    ],
)
def test_loopback_alone_is_local(url: str | None, local: bool) -> None:
    assert config.Backend(kind="openai", model="m", url=url).is_local is local


@pytest.mark.parametrize(
    ("given", "path"),
    [("m/x.gguf", "{folder}/m/x.gguf"), ("/m/x.gguf", "/m/x.gguf"), ("~/x.gguf", "{home}/x.gguf")],
)
def test_a_ggufs_path_is_relative_to_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, path: str
) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    (tmp_path / "config.toml").write_text(f'[models.backends.a]\nkind = "gguf"\npath = "{given}"')
    monkeypatch.chdir(tmp_path)
    loaded = config.load(Path("config.toml")).models.backends["a"]
    assert loaded.path == path.format(folder=tmp_path, home="/home/ann")
    assert loaded.is_local
