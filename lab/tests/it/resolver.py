"""A name server that says of every name what a file tells it to say, and writes down what it was asked.

resolver.py MODE-FILE LOG-FILE

good      127.0.0.1, for no longer than the answer takes
thousand  a thousand addresses, the first of which is 127.0.0.1: more than fits a packet, so it is asked for over TCP
nothing   there is no such name
failure   the server has failed
silence   not a word
loop      a name that is written as the place where it is written
other     the answer to a question that was not asked, and one to a name that is not ours
"""
import socket, struct, sys, threading, time

MODE, LOG = sys.argv[1:]
A = 1


def name_end(packet):
    at = 12
    while packet[at]:
        at += packet[at] + 1
    return at + 1


def record(owner, address):
    return owner + struct.pack("!HHIH", A, 1, 0, 4) + bytes(address)


def answer(packet, over_tcp):
    with open(MODE) as file:
        mode = file.read().strip()
    number, end = packet[:2], name_end(packet)
    (kind,) = struct.unpack("!H", packet[end : end + 2])
    question = packet[12 : end + 4]
    with open(LOG, "a") as file:
        file.write(f"{mode} {kind} {'tcp' if over_tcp else 'udp'}\n")
    if mode == "silence":
        return None
    if mode == "other":
        stranger = b"\x05other\x04test\x00" + question[-4:]
        body = record(b"\xc0\x0c", (127, 0, 0, 9))
        return bytes([number[0] ^ 1, number[1]]) + head(0x8180, 1) + stranger + body
    code = {"nothing": 3, "failure": 2}.get(mode, 0)
    if code:
        return number + head(0x8180 | code, 0) + question
    if kind != A:
        return number + head(0x8180, 0) + question
    if mode == "loop":
        # The owner of the only record is written at the very place where it stands.
        here = struct.pack("!H", 0xC000 | (12 + len(question)))
        return number + head(0x8180, 1) + question + record(here, (127, 0, 0, 1))
    if mode == "thousand" and not over_tcp:
        return number + head(0x8380, 0) + question
    count = 1000 if mode == "thousand" else 1
    records = [record(b"\xc0\x0c", (127, 0, n // 250, 1 + n % 250)) for n in range(count)]
    return number + head(0x8180, count) + question + b"".join(records)


def head(flags, answers):
    return struct.pack("!HHHHH", flags, 1, answers, 0, 0)


def over_tcp():
    listener = socket.create_server(("127.0.0.1", 53))
    while True:
        client, _ = listener.accept()
        with client:
            asked = client.makefile("rb")
            while length := asked.read(2):
                said = answer(asked.read(struct.unpack("!H", length)[0]), True)
                if said is None:
                    break
                client.sendall(struct.pack("!H", len(said)) + said)


threading.Thread(target=over_tcp, daemon=True).start()
door = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
door.bind(("127.0.0.1", 53))
print("answering", flush=True)
while True:
    packet, asker = door.recvfrom(4096)
    said = answer(packet, False)
    if said is not None:
        door.sendto(said, asker)
