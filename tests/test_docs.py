"""The pages say what is there."""

import ast
import functools
import re

from tests.commands import ROOT


@functools.cache
def functions_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_every_promise_has_its_test():
    lines = (ROOT / 'docs' / 'promises.md').read_text().splitlines()
    promises = [line for line in lines if line.startswith('| ') and '---' not in line]
    promises = [line for line in promises if line != '| promise | test |']
    assert len(promises) > 25
    for line in promises:
        named = re.findall(r'`(tests/[\w/]+\.py)::(\w+)`', line.split(' | ')[-1])
        assert named, line
        for file, test in named:
            assert test in functions_in(file), f'{file}::{test}'


def test_files_that_configs_name_are_there():
    found = 0
    for config in (ROOT / 'configs').glob('*.py'):
        for file in re.findall(
            r'(?:tests|experiments|configs|docs)/[\w/]+\.\w+', config.read_text()
        ):
            assert (ROOT / file).exists(), (config.name, file)
            found += 1
    assert found > 50


def test_every_config_has_its_row_and_says_what_it_costs_and_gives():
    readme = (ROOT / 'README.md').read_text()
    configs = [path for path in (ROOT / 'configs').glob('*.py') if path.stem != 'common']
    assert len(configs) > 35
    for path in configs:
        header = ast.get_docstring(ast.parse(path.read_text()))
        assert f'({path.relative_to(ROOT)})' in readme, path.name
        assert f'python -m bigmodels.main --config=configs/{path.name}' in header, path.name
        assert re.search('^Cost', header, re.MULTILINE), path.name
        assert re.search('result', header, re.IGNORECASE), path.name


def test_every_experiment_is_listed():
    listed = (ROOT / 'experiments' / 'README.md').read_text()
    for path in (ROOT / 'experiments').glob('*.py'):
        assert f'[{path.stem}]({path.name})' in listed


def test_links_lead_somewhere():
    pages = [ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'experiments/README.md')]
    pages += (ROOT / 'docs').glob('*.md')
    links = [
        (page, target)
        for page in pages
        for target in re.findall(r'\]\(([^)#]+)\)', page.read_text())
        if '://' not in target
    ]
    assert len(links) > 5
    for page, target in links:
        assert (page.parent / target).exists(), (page.name, target)


def test_what_is_skipped_without_a_library_has_a_job_that_installs_it():
    """Which tests need what `bigmodels[test]` does not bring, by file."""
    brought = {'tokenizers', 'sentencepiece', 'sklearn', 'pycocotools', 'dp_accounting'}
    jobs, found = (ROOT / '.ci' / 'optional').read_text(), []
    for path in (ROOT / 'tests').rglob('test_*.py'):
        needed = re.findall(r"importorskip\('(\w+)|serving\.(browsed)", path.read_text())
        if set(map(''.join, needed)) - brought:
            found.append(path.relative_to(ROOT).as_posix())
    assert len(found) > 7
    assert [file for file in found if file not in jobs] == []
