"""Hydra reads and merges conf/ once per choice of options in a process of tests; only the keys are set anew.

A composition takes 0.1 s instead of 0.4 s. Other folders of configurations are read every time.
"""

import copy
import dataclasses
import functools


@functools.cache
def install():
    """Patch Hydra in this process."""
    from hydra._internal import config_loader_impl
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

    from potstill.config import config_folder

    choose, merge = config_loader_impl.create_defaults_list, ConfigLoaderImpl._compose_config_from_defaults_list
    choices, configs = {}, {}

    def only_conf(repo):
        paths = {source.path for source in repo.get_sources()}
        return paths <= {str(config_folder()), "hydra.conf", ""}

    def is_choice(one, repo):
        return one.package is not None or (repo.group_exists(one.key_or_group) and not isinstance(one.value(), dict))

    def create_defaults_list(repo, config_name, overrides_list, prepend_hydra, skip_missing):
        arguments = repo, config_name, overrides_list, prepend_hydra, skip_missing
        if not only_conf(repo):
            return choose(*arguments)
        chosen = [one for one in overrides_list if is_choice(one, repo)]
        key = config_name, prepend_hydra, skip_missing, tuple(one.input_line for one in chosen)
        if key not in choices:
            choices[key] = choose(*arguments)
            return choices[key]
        keys = [one for one in overrides_list if one not in chosen and not one.is_sweep_override()]
        return dataclasses.replace(choices[key], config_overrides=keys)

    def compose_from_defaults_list(loader, defaults, repo):
        if not only_conf(repo):
            return merge(loader, defaults, repo)
        key = repr(defaults)
        if key not in configs:
            configs[key] = merge(loader, defaults, repo)
        return copy.deepcopy(configs[key])

    config_loader_impl.create_defaults_list = create_defaults_list
    ConfigLoaderImpl._compose_config_from_defaults_list = compose_from_defaults_list
