from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from speechssl.config import Config, differences
from speechssl.errors import ConfigError


class OptimizerConfig(Config):
    learning_rate: float = Field(5e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.98)


class ModelConfig(Config):
    strides: tuple[int, ...] = (5, 2, 2)
    name: str = "base"
    dropout: float | None = 0.1
    causal: bool = False


class RunConfig(Config):
    manifest: Path
    num_steps: int = Field(100, ge=1)
    optimizer: OptimizerConfig = OptimizerConfig()
    model: ModelConfig = ModelConfig()


def toml(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, "utf-8")
    return file


def message(excinfo: pytest.ExceptionInfo[ConfigError]) -> str:
    text = str(excinfo.value)
    assert "\n" not in text
    return text


class TestLoading:
    def test_a_file_states_only_what_differs(self, tmp_path: Path) -> None:
        file = toml(tmp_path, "a.toml", 'manifest = "train.tsv"\n[optimizer]\nlearning_rate = 1e-3\n')
        config = RunConfig.load([file])
        assert config.optimizer == OptimizerConfig(learning_rate=1e-3)
        assert config.optimizer.betas == (0.9, 0.98)
        assert config.model == ModelConfig()

    def test_later_files_win_setting_by_setting_and_overrides_win_over_files(self, tmp_path: Path) -> None:
        first = toml(tmp_path, "a.toml", 'manifest = "a.tsv"\nnum_steps = 1\n[model]\nname = "a"\ncausal = true\n')
        second = toml(tmp_path, "b.toml", 'num_steps = 2\n[model]\nname = "b"\n')
        assert RunConfig.load([first, second]).model == ModelConfig(name="b", causal=True)
        assert RunConfig.load([second, first]).model == ModelConfig(name="a", causal=True)
        config = RunConfig.load([first, second], ["num_steps=3", "num_steps=4", "model.name=c"])
        assert (config.num_steps, config.model) == (4, ModelConfig(name="c", causal=True))

    def test_lists_become_tuples_and_strings_become_paths(self, tmp_path: Path) -> None:
        file = toml(tmp_path, "a.toml", 'manifest = "data/train.tsv"\n[model]\nstrides = [5, 4, 2, 2]\n')
        config = RunConfig.load([file])
        assert config.manifest == tmp_path / "data" / "train.tsv"
        assert config.model.strides == (5, 4, 2, 2)

    def test_paths_count_from_the_file_and_those_of_overrides_from_the_working_folder(self, tmp_path: Path) -> None:
        class Data(Config):
            train: Path = Path("default.tsv")
            dev: Path | None = None

        class Sections(Config):
            data: Data = Data()
            init: Path | None = None
            name: str = "a/b"

        (tmp_path / "sub").mkdir()
        first = toml(
            tmp_path / "sub", "a.toml", 'init = "../model"\nname = "c/d"\n[data]\ntrain = "t.tsv"\ndev = "/d.tsv"\n'
        )
        second = toml(tmp_path, "b.toml", 'data.train = "u.tsv"\n')
        loaded = Sections.load([first])
        assert loaded.data == Data(train=tmp_path / "sub" / "t.tsv", dev=Path("/d.tsv"))
        assert loaded.init is not None
        assert loaded.init.resolve() == tmp_path / "model"
        assert loaded.name == "c/d"
        assert Sections.load([first, second]).data.train == tmp_path / "u.tsv"
        overridden = Sections.load([first], ["data.train=x.tsv", "init=m"])
        assert (overridden.data.train, overridden.init) == (Path("x.tsv"), Path("m"))
        assert Sections.load([]).data.train == Path("default.tsv")

    def test_a_word_that_may_stand_for_a_path_is_none(self, tmp_path: Path) -> None:
        class Noise(Config):
            noise: Literal["white", "pink"] | Path | None = None

        (tmp_path / "white").write_text("")
        file = toml(tmp_path, "a.toml", 'noise = "white"\n')
        assert Noise.load([file]).noise == "white"
        assert Noise.load([file], ["noise=pink"]).noise == "pink"
        assert Noise.load([toml(tmp_path, "b.toml", 'noise = "n.tsv"\n')]).noise == tmp_path / "n.tsv"
        assert Noise.from_dict(Noise(noise=Path("white.tsv")).to_dict(), "").noise == Path("white.tsv")

    def test_a_list_replaces_the_list_of_an_earlier_file(self, tmp_path: Path) -> None:
        first = toml(tmp_path, "a.toml", 'manifest = "a.tsv"\nmodel.strides = [1, 2, 3]\n')
        second = toml(tmp_path, "b.toml", "model.strides = [4]\n")
        assert RunConfig.load([first, second]).model.strides == (4,)

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("model.name=xs", ModelConfig(name="xs")),
            ('model.name="two words"', ModelConfig(name="two words")),
            ("model.name=a=b", ModelConfig(name="a=b")),
            ("model.name=", ModelConfig(name="")),
            ("model.strides=[5,2]", ModelConfig(strides=(5, 2))),
            ("model.causal=true", ModelConfig(causal=True)),
            ("model.dropout=0", ModelConfig(dropout=0.0)),
            ("model = {name = 'x', causal = true}", ModelConfig(name="x", causal=True)),
        ],
    )
    def test_the_value_of_an_override_is_toml_or_else_a_string(self, override: str, expected: ModelConfig) -> None:
        assert RunConfig.load(overrides=["manifest=a.tsv", override]).model == expected

    def test_an_override_within_a_section_keeps_the_rest_of_it(self, tmp_path: Path) -> None:
        file = toml(tmp_path, "a.toml", 'manifest = "a.tsv"\n[optimizer]\nlearning_rate = 0.1\nbetas = [0.8, 0.9]\n')
        config = RunConfig.load([file], ["optimizer.learning_rate=0.2"])
        assert config.optimizer == OptimizerConfig(learning_rate=0.2, betas=(0.8, 0.9))


class TestErrors:
    def test_a_missing_file(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as excinfo:
            RunConfig.load([tmp_path / "none.toml"])
        assert message(excinfo) == f"{tmp_path / 'none.toml'}: No such file or directory"

    def test_a_folder(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError) as excinfo:
            RunConfig.load([tmp_path])
        assert message(excinfo) == f"{tmp_path}: Is a directory"

    @pytest.mark.parametrize("content", [b"num_steps = \n", b"\xff\xfe\x00", b"[model\nname = 1\n"])
    def test_a_file_that_is_not_toml(self, tmp_path: Path, content: bytes) -> None:
        file = tmp_path / "bad.toml"
        file.write_bytes(content)
        with pytest.raises(ConfigError) as excinfo:
            RunConfig.load([file])
        assert message(excinfo).startswith(f"{file}: expected TOML: ")

    def test_an_unknown_setting_is_named_with_its_section(self, tmp_path: Path) -> None:
        file = toml(tmp_path, "a.toml", 'manifest = "a.tsv"\n[optimizer]\nlearning_rte = 1e-3\n')
        with pytest.raises(ConfigError) as excinfo:
            RunConfig.load([file])
        assert message(excinfo) == f"{file}: optimizer.learning_rte: unknown setting"

    def test_an_unknown_section(self) -> None:
        with pytest.raises(ConfigError) as excinfo:
            RunConfig.load(overrides=["manifest=a.tsv", "optimization.learning_rate=1"])
        assert message(excinfo).endswith(": optimization: unknown setting")

    def test_a_required_setting_that_is_missing(self) -> None:
        with pytest.raises(ConfigError) as excinfo:
            RunConfig.load()
        assert message(excinfo) == "defaults: manifest: this setting is required"

    @pytest.mark.parametrize(
        ("override", "where", "found"),
        [
            ("num_steps=0", "num_steps", "found 0"),
            ("num_steps=1.5", "num_steps", "found 1.5"),
            ("num_steps='10'", "num_steps", "found '10'"),
            ("num_steps=true", "num_steps", "found True"),
            ("optimizer.learning_rate=-1.0", "optimizer.learning_rate", "found -1.0"),
            ("optimizer.learning_rate=inf", "optimizer.learning_rate", "found inf"),
            ("optimizer.learning_rate=nan", "optimizer.learning_rate", "found nan"),
            ("optimizer.betas=[0.9, 'x']", "optimizer.betas.1", "found 'x'"),
            ("model.strides=[5,2,'x']", "model.strides.2", "found 'x'"),
            ("model.strides=5", "model.strides", "found 5"),
            ("model.causal=1", "model.causal", "found 1"),
            ("model.name=3", "model.name", "found 3"),
            ("model=3", "model", "found 3"),
        ],
    )
    def test_a_wrong_value_is_named_with_its_path_and_shown(self, override: str, where: str, found: str) -> None:
        with pytest.raises(ConfigError) as excinfo:
            RunConfig.load(overrides=["manifest=a.tsv", override])
        text = message(excinfo)
        assert text.startswith(f"--set manifest=a.tsv, --set {override}: {where}: ")
        assert text.endswith(found) or f"{found} (and" in text

    @pytest.mark.parametrize("betas", ["[0.9]", "[0.9, 0.98, 0.99]"])
    def test_a_list_of_the_wrong_length_is_named(self, betas: str) -> None:
        with pytest.raises(ConfigError, match=r": optimizer\.betas"):
            RunConfig.load(overrides=["manifest=a.tsv", f"optimizer.betas={betas}"])

    def test_only_the_first_of_many_problems_is_told_and_the_others_are_counted(self) -> None:
        with pytest.raises(ConfigError) as excinfo:
            RunConfig.load(overrides=["manifest=a.tsv", "num_steps=0", "model.name=3", "model.causal=1"])
        assert message(excinfo).endswith("(and 2 more)")

    @pytest.mark.parametrize("override", ["num_steps", "=3", ".num_steps=3", "model..name=x", "model.=x", "a b=3"])
    def test_an_override_that_is_no_assignment(self, override: str) -> None:
        with pytest.raises(ConfigError) as excinfo:
            RunConfig.load(overrides=[override])
        assert message(excinfo) == f"--set {override}: expected section.key=value"

    def test_a_configuration_cannot_be_changed(self) -> None:
        config = RunConfig.load(overrides=["manifest=a.tsv"])
        with pytest.raises(ValidationError, match="frozen"):
            config.num_steps = 5  # type: ignore[misc]


configs = st.builds(
    RunConfig,
    manifest=st.text("abc/é ", min_size=1).map(Path),
    num_steps=st.integers(1, 10**9),
    optimizer=st.builds(OptimizerConfig, learning_rate=st.floats(1e-12, 1e3)),
    model=st.builds(
        ModelConfig,
        strides=st.lists(st.integers(1, 9), max_size=5).map(tuple),
        name=st.text(),
        dropout=st.none() | st.floats(0, 1),
        causal=st.booleans(),
    ),
)


@given(configs)
def test_plain_values_give_the_configuration_back(config: RunConfig) -> None:
    assert RunConfig.from_dict(config.to_dict(), "saved") == config
    assert differences(config.to_dict(), RunConfig.from_dict(config.to_dict(), "saved").to_dict()) == {}


def test_plain_values_are_json_types() -> None:
    values = RunConfig(manifest=Path("a.tsv")).to_dict()
    assert values["manifest"] == "a.tsv"
    assert values["model"]["strides"] == [5, 2, 2]


class TestDifferences:
    def test_are_named_by_their_path_with_old_and_new(self) -> None:
        old = RunConfig(manifest=Path("a.tsv"), num_steps=1)
        new = RunConfig(manifest=Path("a.tsv"), num_steps=2, model=ModelConfig(strides=(5,)))
        assert differences(old.to_dict(), new.to_dict()) == {
            "num_steps": (1, 2),
            "model.strides": ([5, 2, 2], [5]),
        }

    def test_a_setting_of_only_one_side_is_none_on_the_other(self) -> None:
        assert differences({"a": 1}, {"b": {"c": 2}}) == {"a": (1, None), "b": (None, {"c": 2})}

    def test_a_section_that_became_a_value(self) -> None:
        assert differences({"a": {"b": 1}}, {"a": 3}) == {"a": ({"b": 1}, 3)}

    @given(configs, configs)
    def test_are_empty_only_between_equals_and_the_same_both_ways(self, old: RunConfig, new: RunConfig) -> None:
        found = differences(old.to_dict(), new.to_dict())
        assert (not found) == (old == new)
        assert differences(new.to_dict(), old.to_dict()) == {name: (b, a) for name, (a, b) in found.items()}


def test_a_mistyped_name_is_told_before_what_is_missing_because_of_it() -> None:
    with pytest.raises(ConfigError, match=r"manifst: unknown setting \(and 1 more\)"):
        RunConfig.load([], ["manifst=train.tsv"])


def test_a_section_given_in_part_keeps_its_owners_defaults() -> None:
    class SlowConfig(Config):
        optimizer: OptimizerConfig = OptimizerConfig(learning_rate=1e-5, betas=(0.5, 0.6))

    assert SlowConfig.load([], ["optimizer.learning_rate=1e-4"]).optimizer.betas == (0.5, 0.6)


class SpanConfig(Config):
    share: float = 0.5
    length: int = 10


class CircleConfig(Config):
    kind: Literal["circle"] = "circle"
    radius: float = Field(1.0, gt=0)
    span: SpanConfig = SpanConfig(length=3)


class SquareConfig(Config):
    kind: Literal["square"] = "square"
    side: float = 2.0
    span: SpanConfig = SpanConfig(length=7)


class DrawingConfig(Config):
    title: str = "untitled"
    shape: CircleConfig | SquareConfig = Field(CircleConfig(radius=5.0), discriminator="kind")


class AlbumConfig(Config):
    first: DrawingConfig | None = None
    frame: SpanConfig | None = None


class TestKinds:
    """A section that is one of several, by its setting ``kind``."""

    def test_its_own_defaults_hold_unless_another_is_named(self) -> None:
        assert DrawingConfig.load([], ["title=a"]).shape == CircleConfig(radius=5.0)
        found = DrawingConfig.load([], ["title=a", "shape.span.share=0.1"]).shape
        assert found == CircleConfig(radius=5.0, span=SpanConfig(share=0.1, length=3))
        found = DrawingConfig.load([], ["title=a", "shape.kind=square", "shape.span.share=0.1"]).shape
        assert found == SquareConfig(span=SpanConfig(share=0.1, length=7))

    def test_another_kind_takes_the_place_of_an_earlier_file(self, tmp_path: Path) -> None:
        first = toml(tmp_path, "a.toml", "title = 'a'\nshape = { kind = 'circle', radius = 3.0 }\n")
        second = toml(tmp_path, "b.toml", "shape = { kind = 'square', side = 4.0 }\n")
        assert DrawingConfig.load([first, second]).shape == SquareConfig(side=4.0)
        assert DrawingConfig.load([second, first]).shape == CircleConfig(radius=3.0)

    def test_sections_that_are_off_by_default_are_completed_when_given(self) -> None:
        assert AlbumConfig.load() == AlbumConfig()
        assert AlbumConfig.load([], ["frame={}"]).frame == SpanConfig()
        assert AlbumConfig.load([], ["frame.length=4"]).frame == SpanConfig(length=4)
        found = AlbumConfig.load([], ["first.shape.span.share=0.1"]).first
        assert found == DrawingConfig(shape=CircleConfig(radius=5.0, span=SpanConfig(share=0.1, length=3)))

    def test_survives_plain_values(self) -> None:
        for shape in (SquareConfig(side=1.5), CircleConfig(radius=1.5)):
            config = DrawingConfig(title="a", shape=shape)
            assert DrawingConfig.from_dict(config.to_dict(), "test") == config

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("shape.radius=-1", "shape.radius: input should be greater than 0, found -1"),
            ("shape.side=1", "shape.side: unknown setting"),
            ("shape.span.length=x", "shape.span.length: input should be a valid integer, found 'x'"),
            ("shape.kind=star", "shape: input tag 'star' found using 'kind' does not match any of the expected tags"),
            ("shape=3", "shape: "),
        ],
    )
    def test_errors_name_the_setting_and_not_the_kind(self, override: str, expected: str) -> None:
        with pytest.raises(ConfigError) as excinfo:
            DrawingConfig.load([], ["title=a", override])
        assert expected in message(excinfo)


class StartConfig(Config):
    model: Path | str | None = None
    folder: Path | None = None


def test_a_setting_that_may_be_a_name_is_a_path_where_there_is_one(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('model = "owner/name"\nfolder = "owner/name"\n')
    assert StartConfig.load([file], []).model == Path("owner/name")
    (tmp_path / "owner" / "name").mkdir(parents=True)
    found = StartConfig.load([file], [])
    assert found.model == tmp_path / "owner/name"
    assert found.folder == tmp_path / "owner/name"
