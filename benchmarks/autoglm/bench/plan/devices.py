"""What computes in a simulation: devices that share their cores among the work that is given to them."""

import simpy

NORMAL, NICE = 1.0, 110 / 1024  # Linux's weights of niceness 0 and 10: encoders on a CPU give way to the decoder
_DONE = 1e-12  # seconds of work that rounding may leave


class Processor:
    """Computes whatever it is given at once: for one replica, which computes one thing at a time."""

    def __init__(self, env: simpy.Environment) -> None:
        self._env = env
        self.busy = 0.0

    def run(self, seconds: float, weight: float = NORMAL) -> simpy.Event:
        """Return the event of so much work being done."""
        self.busy += seconds
        return self._env.timeout(seconds)


class _Task:
    __slots__ = ("done", "left", "rate", "weight")

    def __init__(self, left: float, weight: float, done: simpy.Event) -> None:
        self.left, self.weight, self.done, self.rate = left, weight, done, 0.0


class SharedProcessor(Processor):
    """`cores` that several tasks share by their weights; no task computes on more than one core at a time."""

    def __init__(self, env: simpy.Environment, cores: int) -> None:
        super().__init__(env)
        self._cores, self._tasks, self._since, self._version = cores, list[_Task](), 0.0, 0

    def run(self, seconds: float, weight: float = NORMAL) -> simpy.Event:
        """Return the event of so much work being done, others' work on the same cores included."""
        self.busy += seconds
        self._advance()
        done = self._env.event()
        self._tasks.append(_Task(seconds, weight, done))
        self._schedule()
        return done

    def _advance(self) -> None:
        """Count what has been computed since the last change."""
        elapsed = self._env.now - self._since
        self._since = self._env.now
        for task in self._tasks:
            task.left -= elapsed * task.rate

    def _schedule(self) -> None:
        """Share the cores, and wake when the next task is done."""
        self._version += 1
        if not self._tasks:
            return
        self._share()
        delay = min(max(0.0, task.left) / task.rate for task in self._tasks)
        version = self._version
        self._env.timeout(delay).callbacks.append(lambda _: self._wake(version))

    def _share(self) -> None:
        """Give each task its part of the cores; what a task cannot use, as it has one core, goes to the others."""
        if len(self._tasks) <= self._cores:
            for task in self._tasks:
                task.rate = 1.0
            return
        cores, left = float(self._cores), sorted(self._tasks, key=lambda task: -task.weight)
        total = sum(task.weight for task in left)
        for task in left:
            task.rate = min(1.0, cores * task.weight / total)
            cores, total = cores - task.rate, total - task.weight

    def _wake(self, version: int) -> None:
        if version != self._version:  # the tasks have changed since
            return
        self._advance()
        done = [task for task in self._tasks if task.left <= _DONE]
        self._tasks = [task for task in self._tasks if task.left > _DONE]
        self._schedule()
        for task in done:
            task.done.succeed()
