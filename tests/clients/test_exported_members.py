import types

import tfs_client


def test_all_is_complete():
    public = [
        name
        for name, value in vars(tfs_client).items()
        if not name.startswith("_") and not isinstance(value, types.ModuleType)
    ]
    assert set(tfs_client.__all__) == set(public)
