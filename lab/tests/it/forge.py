"""Off the path and hostile: tells a sender that its packets cannot arrive, as if a router had said so.

forge.py look PORT   prints one IP packet to and one from a UDP port, as an observer on the path would see them
forge.py tell HEX    sends every kind of ICMP error about a packet to its sender, again and again for three seconds
"""
import socket, struct, sys, time


def words(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def look(port):
    tap = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    seen = {}
    while len(seen) < 2:
        packet = tap.recv(65535)[14:]
        if len(packet) < 28 or packet[0] >> 4 != 4 or packet[9] != 17:
            continue
        header = (packet[0] & 15) * 4
        ports = struct.unpack("!HH", packet[header : header + 4])
        if port in ports:
            seen[ports.index(port)] = packet
    for side in sorted(seen):
        print(seen[side][:92].hex(), flush=True)


def tell(packet):
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    sender, receiver = packet[12:16], packet[16:20]
    quoted = packet[:28]
    # Unreachable: network, host, protocol, port, too long for 68, 576 and 1 000 bytes, forbidden; quench; late; wrong.
    kinds = [(3, code, 0) for code in (0, 1, 2, 3, 9, 10, 13)]
    kinds += [(3, 4, mtu) for mtu in (68, 576, 1000)] + [(4, 0, 0), (11, 0, 0), (12, 0, 0)]
    until, number = time.time() + 3, 0
    while time.time() < until:
        for kind, code, rest in kinds:
            icmp = struct.pack("!BBHI", kind, code, 0, rest) + quoted
            icmp = icmp[:2] + struct.pack("!H", words(icmp)) + icmp[4:]
            # As the receiver itself would say it, and as a router on the way would.
            for router in (receiver, sender[:3] + b"\x01"):
                head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(icmp), 0, 0, 64, 1, 0) + router + sender
                raw.sendto(head + icmp, (socket.inet_ntoa(sender), 0))
                number += 1
        time.sleep(0.02)
    print(f"{number} forged", flush=True)


if sys.argv[1] == "look":
    look(int(sys.argv[2]))
else:
    tell(bytes.fromhex(sys.argv[2]))
