"""The held-out split is the same on every machine, whatever else is installed there."""

from llama_code.data.split import STANDARD_LIBRARY, is_held_out


def test_the_standard_library_is_always_held_out() -> None:
    assert is_held_out(STANDARD_LIBRARY)


def test_known_names_do_not_change_sides() -> None:
    held_out = {"contourpy", "hf-xet", "iniconfig", "markupsafe", "pathspec"}
    trained_on = {"numpy", "torch", "transformers", "requests", "sympy", "pip", "rich", "pandas"}
    assert {name for name in held_out | trained_on if is_held_out(name)} == held_out


def test_case_does_not_matter() -> None:
    assert is_held_out("MarkupSafe") and not is_held_out("NumPy")


def test_about_one_in_twenty() -> None:
    assert 400 < sum(is_held_out(f"project-{i}") for i in range(10_000)) < 600
