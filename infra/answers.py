"""Checks of the servers: each answers, takes the credentials, refuses others, and has the version of the lock."""

from pathlib import Path
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from infra.bucket import make_client
from infra.http import Answer, ask
from infra.machine import pins
from infra.problem import Problem
from infra.servers import POOL
from infra.settings import Settings

START = "start it with `make stack`, and see .stack/logs"
FOREIGN = {"Host": "foreign.example"}
WRONG = "nobody:nothing"


def check_postgres(settings: Settings) -> str:
    """Logs in with the password."""
    import psycopg2

    try:
        connection = psycopg2.connect(settings.database("postgres"), connect_timeout=10)
    except psycopg2.OperationalError as error:
        said = " ".join(str(error).split())
        if "password authentication failed" in said:
            raise Problem("refuses NFM_POSTGRES_PASSWORD; `make stack` sets the one of .env") from error
        raise Problem(f"does not answer at port {settings.postgres_port}; {START}/postgres.log") from error
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT current_setting('server_version'), sum(pg_database_size(oid)) FROM pg_database")
            server, size = cursor.fetchall()[0]
    finally:
        connection.close()
    return f"PostgreSQL {server.split()[0]}, {int(size) >> 20} MiB"


def check_store(settings: Settings) -> str:
    """Looks for the bucket with the keys, and tries to without."""
    try:
        make_client(settings).head_bucket(Bucket=settings.bucket)
    except ClientError as error:
        raise Problem(_refusal(error, settings)) from error
    except BotoCoreError as error:
        raise Problem(f"does not answer at {settings.s3_url}; {START}/s3.log") from error
    if ask(f"{settings.s3_url}/{settings.bucket}").status == 200:
        raise Problem(f"shows the bucket {settings.bucket} to everybody; restrict it")
    return f"the bucket {settings.bucket} is there, and closed to others"


def check_prefect(settings: Settings, root: Path) -> str:
    """Asks for the server's version, with the credentials and without."""
    access, url = settings["NFM_PREFECT_AUTH"], settings.prefect_url
    answer = ask(f"{url}/admin/version", access)
    _expect(answer, url, "prefect", "NFM_PREFECT_AUTH")
    if ask(f"{url}/admin/version", WRONG).status == 200:
        raise Problem("answers without credentials; set PREFECT_SERVER_API_AUTH_STRING where it runs")
    return _version("prefect", str(answer.json()), root)


def check_worker(settings: Settings) -> str:
    """Counts the workers of the pool that report."""
    url = f"{settings.prefect_url}/work_pools/{POOL}"
    answer = ask(f"{url}/workers/filter", settings["NFM_PREFECT_AUTH"], {})
    if answer.status == 404:
        raise Problem(f"there is no work pool {POOL}; `make stack` makes it")
    found: Any = answer.json()
    if answer.status != 200 or not isinstance(found, list):
        raise Problem("cannot be asked for, since prefect does not answer; mend that first")
    online = [each["name"] for each in found if each.get("status") == "ONLINE"]
    if not online:
        raise Problem(f"no worker of the pool {POOL} has reported lately; {START}/worker.log")
    if ask(url, settings["NFM_PREFECT_AUTH"]).json().get("is_paused"):
        raise Problem(f"the work pool {POOL} is paused; prefect work-pool resume {POOL}")
    return f"{len(online)} in the pool {POOL}"


def check_mlflow(settings: Settings, root: Path) -> str:
    """Asks for an experiment, with the credentials and without, and by a foreign name."""
    url = settings.mlflow_url
    content = {"max_results": 1}
    search = f"{url}/api/2.0/mlflow/experiments/search"
    access = f"{settings['NFM_MLFLOW_USER']}:{settings['NFM_MLFLOW_PASSWORD']}"
    _expect(ask(search, access, content), url, "mlflow", "NFM_MLFLOW_PASSWORD")
    if ask(search, WRONG, content).status == 200:
        raise Problem("answers without credentials; serve it with --app-name basic-auth")
    if ask(search, access, content, FOREIGN).status == 200:
        raise Problem("answers to foreign Host headers; set MLFLOW_SERVER_ALLOWED_HOSTS where it runs")
    return _version("mlflow", ask(f"{url}/version", access).text, root)


def _expect(answer: Answer, url: str, name: str, variable: str) -> None:
    if answer.status in (401, 403):
        raise Problem(f"refuses {variable}; `make stack` sets the one of .env")
    if answer.status == 0:
        raise Problem(f"does not answer at {url} ({answer.text}); {START}/{name}.log")
    if answer.status != 200:
        raise Problem(f"answers at {url} with status {answer.status}; see .stack/logs/{name}.log")


def _version(name: str, server: str, root: Path) -> str:
    wanted = pins(root).get(name)
    if server != wanted:
        raise Problem(f"has the version {server}, requirements.lock {wanted}; make stack-down, then make stack")
    return f"{name} {server}, and closed to others"


def _refusal(error: ClientError, settings: Settings) -> str:
    code = str(error.response.get("Error", {}).get("Code"))
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    if status == 404:
        return f"has no bucket {settings.bucket}; `make stack` makes it"
    if status == 403:
        return "refuses NFM_S3_ACCESS_KEY or NFM_S3_SECRET_KEY; `make stack` sets those of .env"
    return f"answers {code} at {settings.s3_url}; see .stack/logs/s3.log"
