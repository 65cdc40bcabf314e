"""What a client of the code interpreter does, line by line."""

from e2b_code_interpreter import Sandbox

sandbox = Sandbox.create(template="code-interpreter", timeout=600)
try:
    sandbox.run_code("x = 20")
    execution = sandbox.run_code("print('hello'); x + 1")
    print(execution.text)  # 21: the value of the last expression
    print(execution.logs.stdout)  # ['hello\n']

    failed = sandbox.run_code("1 / 0")
    print(failed.error.name, failed.error.value)  # ZeroDivisionError division by zero

    sandbox.run_code("print('as it comes')", on_stdout=lambda line: print(line.line, end=""))
    print(sandbox.run_code("import os; os.environ['CITY']", envs={"CITY": "Rome"}).text)
    print(sandbox.run_code("[1, 2].map((n) => n * 2)", language="javascript").text)

    context = sandbox.create_code_context(cwd="/home/user")
    print(sandbox.run_code("import os; os.getcwd()", context=context).text)  # /home/user

    sandbox.files.write("numbers.txt", "1\n2\n3\n")
    print(sandbox.run_code("sum(map(int, open('numbers.txt')))").text)  # 6
    print([entry.name for entry in sandbox.files.list(".") if entry.name == "numbers.txt"])
    print(sandbox.files.read("numbers.txt"))

    sandbox.commands.run("python -m http.server 9223", background=True)
    print(sandbox.get_host(9223))  # reachable from outside
finally:
    sandbox.kill()
