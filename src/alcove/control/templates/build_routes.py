"""Routes that make templates: ask for a build, send its files, start it, cancel it; visibility."""

from typing import Annotated, Any, Protocol
from uuid import UUID

from fastapi import APIRouter, Depends, Query, Request
from starlette.responses import Response

from alcove.control.api import MAX_INT64, Text, errors, json_response
from alcove.control.errors import ForbiddenError, InvalidRequestError
from alcove.control.teams.auth import CallerOf
from alcove.control.templates import build_schemas as schemas
from alcove.control.templates.builds import Builds, Requested, Wanted, base_of
from alcove.control.templates.clients import has_plain_user
from alcove.control.templates.files import BuildFiles
from alcove.wire.builds import BuildPlan
from alcove.wire.ids import BuildId

UPLOADS = "/build-files/"
"""What is sent below this path is larger than other bodies, and limited where it is received."""

router = APIRouter(tags=["template builds"])


async def _builds(request: Request) -> Builds:
    builds: Builds = request.app.state.builds
    return builds


async def _files(request: Request) -> BuildFiles:
    builds: Builds = request.app.state.builds
    return builds.files


BuildsOf = Annotated[Builds, Depends(_builds)]
FilesOf = Annotated[BuildFiles, Depends(_files)]


class _TeamNamed(Protocol):
    @property
    def teamID(self) -> str | None: ...  # noqa: N802 - the wire's name


@router.post(
    "/v3/templates",
    status_code=202,
    response_model=schemas.RequestedBuild,
    responses=errors(403, 409),
)
async def request_build(body: schemas.NewBuild, caller: CallerOf, builds: BuildsOf) -> Response:
    """Begin a template, or another build of one; nothing is built until the build is started."""
    return _requested_json(await builds.request(caller, _wanted(caller.team_id, body)))


@router.post(
    "/v1/templates",
    status_code=202,
    response_model=schemas.RequestedBuild,
    responses=errors(403, 404, 409, 429, 503),
)
async def create_template(
    request: Request, body: schemas.WholeBuild, caller: CallerOf, builds: BuildsOf
) -> Response:
    """Begin a build and start it, in one request; files of COPY steps were sent before."""
    wanted = _wanted(caller.team_id, body)
    plan, base = _plan(caller.team_id, body, request.headers.get("user-agent", ""))
    credentials = _credentials(body) if plan.with_credentials else None
    made = await builds.make(caller, wanted, plan, base=base, credentials=credentials)
    return _requested_json(made)


@router.get(
    "/templates/{template_id}/files/{files_hash}",
    status_code=201,
    response_model=schemas.FileUpload,
    responses=errors(404),
)
async def find_files(
    *,
    request: Request,
    template_id: Text,
    files_hash: Text,
    caller: CallerOf,
    builds: BuildsOf,
    files: FilesOf,
) -> Response:
    """Whether the files of a COPY step are there, and where their archive can be sent."""
    await builds.own_template(caller, template_id)
    present = await files.present(caller.team_id, files_hash)
    base = builds.public_url or str(request.base_url)
    url = base.rstrip("/") + files.upload_path(caller.team_id, files_hash)
    return json_response({"present": present, "url": url}, 201)


@router.put(
    "/build-files/{owner}/{files_hash}",
    status_code=200,
    response_class=Response,
    responses=errors(403, 408, 411, 413),
)
async def receive_files(
    *,
    request: Request,
    owner: Text,
    files_hash: Text,
    files: FilesOf,
    expires: Annotated[int, Query(ge=0, le=MAX_INT64)],
    signature: Text,
) -> Response:
    """Take an archive; the signature in the address is what lets it in."""
    files.check(owner, files_hash, expires, signature)
    length = request.headers.get("content-length")
    await files.receive(
        owner, files_hash, None if length is None else int(length), request.stream()
    )
    return Response(status_code=200)


@router.post(
    "/v2/templates/{template_id}/builds/{build_id}",
    status_code=202,
    response_class=Response,
    responses=errors(403, 404, 409, 429, 503),
)
async def start_build(
    *,
    request: Request,
    template_id: Text,
    build_id: UUID,
    body: schemas.BuildStart,
    caller: CallerOf,
    builds: BuildsOf,
) -> Response:
    """Start a build that waits."""
    plan, base = _plan(caller.team_id, body, request.headers.get("user-agent", ""))
    await builds.start(
        caller,
        template_id,
        BuildId(str(build_id)),
        plan,
        base=base,
        credentials=_credentials(body) if plan.with_credentials else None,
    )
    return Response(status_code=202)


@router.post(
    "/v1/templates/{template_id}/builds/{build_id}/cancel",
    status_code=204,
    responses=errors(404),
)
async def cancel_build(
    template_id: Text, build_id: UUID, caller: CallerOf, builds: BuildsOf
) -> Response:
    """End a build that waits or is under way; one that has ended stays as it is."""
    await builds.cancel(caller, template_id, BuildId(str(build_id)))
    return Response(status_code=204)


@router.patch(
    "/v2/templates/{template_id:path}",
    response_model=schemas.ChangedTemplate,
    responses=errors(404),
)
@router.patch(
    "/templates/{template_id:path}",
    response_model=schemas.ChangedTemplate,
    responses=errors(404),
)
async def change_template(
    template_id: Text, body: schemas.TemplateChange, caller: CallerOf, builds: BuildsOf
) -> Response:
    """Let every team use the template, or only its own."""
    names = await builds.set_public(caller, template_id, public=body.public)
    return json_response({"names": names})


def _plan(owner: str, body: schemas.BuildStart, user_agent: str) -> tuple[BuildPlan, str]:
    """What is to be built, and the name of the template it goes on from, if any."""
    if bool(body.fromImage) == bool(body.fromTemplate):
        raise InvalidRequestError("Exactly one of fromImage and fromTemplate must be given")
    if body.preBootScript:
        raise InvalidRequestError("preBootScript is not supported: use a RUN step as root")
    try:
        steps = tuple(step.read(number) for number, step in enumerate(body.steps or (), start=1))
    except ValueError as error:
        raise InvalidRequestError(str(error)) from error
    base = base_of(body.fromImage or "", body.fromTemplate or "")
    plan = BuildPlan(
        owner=owner,
        from_image="" if base else body.fromImage or "",
        steps=steps,
        start_command=body.startCmd or "",
        ready_command=body.readyCmd or "",
        force=bool(body.force),
        with_credentials=body.fromImageRegistry is not None and not base,
        plain_user=has_plain_user(user_agent),
    )
    return plan, base


def _wanted(team_id: str, body: schemas.NewBuild) -> Wanted:
    _check_team(team_id, body)
    name = body.name or body.alias
    if not name:
        raise InvalidRequestError("name is missing: a template needs a name")
    given = {
        "vcpu_count": body.cpuCount,
        "memory_mib": body.memoryMB,
        "disk_mib": body.minFreeDiskMb,
    }
    sizes: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    return Wanted(name, body.tags or (), **sizes)


def _requested_json(requested: Requested) -> Response:
    return json_response(
        {
            "templateID": requested.template.id,
            "buildID": requested.build.id,
            "public": requested.template.public,
            "names": requested.names,
            "tags": requested.tags,
            "aliases": [full.rpartition("/")[2] for full in requested.names],
        },
        202,
    )


def _credentials(body: schemas.BuildStart) -> dict[str, str] | None:
    return None if body.fromImageRegistry is None else body.fromImageRegistry.given()


def _check_team(team_id: str, body: _TeamNamed) -> None:
    if body.teamID and body.teamID != team_id:
        raise ForbiddenError("The API key belongs to another team than teamID")
