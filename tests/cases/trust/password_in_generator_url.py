"""A password in `generator`'s URL landed in run files and cards: it is refused before anything is written or shown."""

from pathlib import Path

from product import assert_refused, command, pipeline_file, stage_files


def check(folder: Path) -> None:
    url = "http://me:hunter2@10.0.0.7:8000"
    for given in (url, url.removeprefix("http://")):
        config = pipeline_file(folder, ppo={"generator": {"url": given}})
        stage = [*stage_files(folder)["ppo"], "--output_dir", folder / "out", "--generator", f'{{"url": "{given}"}}']
        for argv in (["run", "--config", config], stage):
            result = command(*argv)
            assert_refused(result, "`generator`: `url`", "`api_key_env`")
            assert "hunter2" not in result.out + result.err
            assert not (folder / "out").exists() and not (folder / ".out.partial").exists()
