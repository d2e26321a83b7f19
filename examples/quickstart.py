from dse import Change, DataService, Node, Table, every, on_change, rpc


class Thermometer(DataService):
    readings = Table("room", "celsius")  # a published table: a set of rows, whose columns are named

    @every(5.0)  # runs while the service runs, at once for the first time
    def measure(self) -> None:
        self.readings.insert([("kitchen", 21.5)])  # what subscribers have already is no change

    @rpc  # arguments are checked against the annotations
    def report(self, room: str, celsius: float) -> int:
        return len(self.readings.insert([(room, celsius)]).added)


class Display(DataService):
    @on_change("thermometer", "readings")  # subscribes while the service runs
    def show(self, change: Change) -> None:
        print("came:", *sorted(change.added), "went:", *sorted(change.removed))


with Node("fake://", services=[Thermometer("thermometer")]), Node("fake://", services=[Display("display")]) as node:
    new = node.call("thermometer", "report", {"room": "attic", "celsius": 17.0}, timeout=5)
    node.service("display").subscribe("thermometer", "readings").wait(lambda replica: len(replica) == 2, timeout=5)
print(f"the call returned: {new} new row")
