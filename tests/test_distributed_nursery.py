"""Workers that several threads start at once."""

from concurrent.futures import ThreadPoolExecutor


def test_threads_that_start_workers_at_once_get_each_its_own(nursery, tmp_path):
    logs = [tmp_path / f"log-{k}" for k in range(12)]
    arguments = ["-n1", "-r1", "import os; print('number', os.getpid())"]
    with ThreadPoolExecutor(len(logs)) as pool:
        workers = list(pool.map(lambda log: nursery.start("timeit", arguments, log), logs))
    assert [worker.wait(60) for worker in workers] == [0] * len(logs)
    for worker, log in zip(workers, logs, strict=True):
        assert worker.log == log and f"number {worker.pid}\n" in log.read_text()
