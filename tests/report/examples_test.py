"""The log of examples: a line a step, cut where a run goes on."""

from diffusion_jax.report.examples import ExampleLog, read_examples


def write(folder, resumed, parts, *, process=0, processes=1, each=1):
    log = ExampleLog(folder, process=process, processes=processes, resumed_step=resumed, steps_per_dispatch=each)
    for part in parts:
        log.append(part)
    log.close()


def test_a_line_a_step_whatever_a_dispatch_holds(tmp_path):
    write(tmp_path / "one", None, [[1, 2], [3, 4], [5, 6]])
    write(tmp_path / "three", None, [[1, 2, 3, 4, 5, 6]], each=3)
    assert read_examples(tmp_path / "one") == read_examples(tmp_path / "three") == {1: [1, 2], 2: [3, 4], 3: [5, 6]}


def test_what_will_be_done_again_is_cut_and_so_is_half_a_line(tmp_path):
    write(tmp_path, None, [[1], [2], [3]])
    with (tmp_path / "00000.jsonl").open("a") as file:
        file.write('{"step": 4, "exa')  # as a kill leaves it
    write(tmp_path, 2, [[7]])
    assert read_examples(tmp_path) == {1: [1], 2: [2], 3: [7]}


def test_the_first_process_cuts_for_those_that_are_no_more(tmp_path):
    write(tmp_path, None, [[1], [2]], processes=2)
    write(tmp_path, None, [[5], [6]], process=1, processes=2)
    assert read_examples(tmp_path) == {1: [1, 5], 2: [2, 6]}
    write(tmp_path, 1, [[2, 6]])
    assert read_examples(tmp_path) == {1: [1, 5], 2: [2, 6]}


def test_no_process_replaces_a_file_that_another_writes(tmp_path):
    """Whichever of two begins first."""
    for first in (0, 1):
        logs = {
            process: ExampleLog(tmp_path / str(first), process=process, processes=2, resumed_step=None)
            for process in (first, 1 - first)
        }
        for process in (0, 1):
            logs[process].append([process])
            logs[process].close()
        assert read_examples(tmp_path / str(first)) == {1: [0, 1]}


def test_a_new_run_begins_an_empty_log(tmp_path):
    write(tmp_path, 0, [[1], [2]])
    write(tmp_path, None, [[3]])
    assert read_examples(tmp_path) == {1: [3]}
