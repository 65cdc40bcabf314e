from e2b import Sandbox

with Sandbox.create() as sandbox:
    sandbox.files.write("numbers.txt", "6 7\n")
    result = sandbox.commands.run("awk '{print $1 * $2}' numbers.txt && uname -sr")
    print(result.stdout)
