import types

import tfs_client


def test_all_is_sorted_and_complete():
    public = [
        name
        for name, value in vars(tfs_client).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    ]
    assert tfs_client.__all__ == sorted(tfs_client.__all__)
    assert set(tfs_client.__all__) == set(public)
