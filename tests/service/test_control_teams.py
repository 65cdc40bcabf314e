"""API keys: made, shown once, renamed, revoked; the key of a new installation."""

import asyncio
import re
import stat
from pathlib import Path

from control_fixture import InWorld, in_world
from control_world import World, world

__all__ = ["in_world"]


def test_a_key_is_shown_once_and_dies_at_once(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        made = (await here.http.post("/api-keys", json={"name": "ci"})).json()
        assert re.fullmatch(r"e2b_[0-9a-f]{40}", made["key"])
        assert made["mask"] == {
            "prefix": "e2b_",
            "valueLength": 40,
            "maskedValuePrefix": made["key"][4:8],
            "maskedValueSuffix": made["key"][-4:],
        }
        use = {"X-API-Key": made["key"]}
        assert (await here.http.get("/teams", headers=use)).json()[0]["apiKey"] == made["key"]
        listed = (await here.http.get("/api-keys")).json()
        assert [key["name"] for key in listed] == ["local", "ci"]
        assert made["key"] not in str(listed)
        path = f"/api-keys/{made['id']}"
        assert (await here.http.patch(path, json={"name": "new"})).status_code == 200
        await here.app.state.teams.write_last_used()
        [_, shown] = (await here.http.get("/api-keys")).json()
        assert shown["name"] == "new"
        assert shown["lastUsed"] is not None
        assert (await here.http.delete(path)).status_code == 204
        assert (await here.http.get("/teams", headers=use)).status_code == 401
        assert (await here.http.delete(path)).status_code == 404
        assert (await here.http.patch(path, json={"name": "x"})).status_code == 404

    in_world(scenario)


def test_keys_of_another_team_cannot_be_touched(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        [mine] = (await here.http.get("/api-keys")).json()
        foreign = await here.other_team()
        path = f"/api-keys/{mine['id']}"
        assert (await here.http.delete(path, headers=foreign)).status_code == 404
        answer = await here.http.patch(path, json={"name": "x"}, headers=foreign)
        assert answer.status_code == 404
        assert (await here.http.get("/api-keys")).json() == [mine]

    in_world(scenario)


def test_bad_key_requests(in_world: InWorld) -> None:
    async def scenario(here: World) -> None:
        for body in ({}, {"name": ""}, {"name": 5}, {"name": "a" * 201}, {"name": "\x00"}):
            answer = await here.http.post("/api-keys", json=body)
            assert (answer.status_code, answer.json()["code"]) == (400, 400)
        assert (await here.http.delete("/api-keys/1")).status_code == 400
        for _ in range(99):
            assert (await here.http.post("/api-keys", json={"name": "n"})).status_code == 201
        assert (await here.http.post("/api-keys", json={"name": "n"})).status_code == 429

    in_world(scenario)


def test_the_local_key_is_private_and_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with world(tmp_path) as here:
            file = tmp_path / "local.env"
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            first = here.key
            await here.restart()
            assert here.key == first
            assert len((await here.http.get("/api-keys")).json()) == 1
            file.unlink()
            await here.restart()
            assert here.key != first
            assert (await here.http.get("/teams")).status_code == 200
            old = {"X-API-Key": first}
            assert (await here.http.get("/teams", headers=old)).status_code == 200

    asyncio.run(scenario())
