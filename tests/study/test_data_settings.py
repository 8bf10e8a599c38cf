"""The settings of data that tell one search or run from another."""

from lightning.pytorch import LightningDataModule

from onelayer.study.data_settings import without_locations


class Mirrors(LightningDataModule):
    locations = ("folder",)

    def __init__(self, folder: str = "", flip: bool = True, size: int = 3) -> None:
        super().__init__()


def test_an_argument_that_came_later_counts_only_where_it_has_not_its_default():
    cifar = {"root": "somewhere", "seed": 0, "flip": False, "shift": 0, "border": "reflect"}
    assert without_locations(cifar) == {"seed": 0}
    assert without_locations({**cifar, "flip": True}) == {"seed": 0, "flip": True}
    name = f"{__name__}.Mirrors"
    for flip, kept in ((True, {"size": 3}), (False, {"size": 3, "flip": False})):
        arguments = {"folder": "somewhere", "size": 3, "flip": flip}
        found = without_locations({"class_path": name, "init_args": arguments})
        assert found == {"class_path": name, "init_args": kept}
