"""A proxy, the only way out of somebody's network: HTTP CONNECT and SOCKS5 (no login) at one port.

proxy.py ADDRESS PORT   prints a line for each connection that it opens
"""
import socket, struct, sys, threading


def exactly(stream, length):
    data = b""
    while len(data) < length:
        more = stream.recv(length - len(data))
        if not more:
            raise OSError("hung up")
        data += more
    return data


def pump(source, sink):
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()
        sink.close()


def asked(near):
    first = exactly(near, 1)
    if first == b"\x05":
        exactly(near, exactly(near, 1)[0])
        near.sendall(b"\x05\x00")
        kind = exactly(near, 4)[3]
        if kind == 1:
            host = socket.inet_ntoa(exactly(near, 4))
        elif kind == 4:
            host = socket.inet_ntop(socket.AF_INET6, exactly(near, 16))
        else:
            host = exactly(near, exactly(near, 1)[0]).decode()
        (port,) = struct.unpack("!H", exactly(near, 2))
        return "SOCKS5", host, port, b"\x05\x00\x00\x01\0\0\0\0\0\0"
    head = first
    while not head.endswith(b"\r\n\r\n"):
        head += exactly(near, 1)
    host, _, port = head.split()[1].decode().rpartition(":")
    return "CONNECT", host.strip("[]"), int(port), b"HTTP/1.1 200 OK\r\n\r\n"


def serve(near):
    try:
        how, host, port, answer = asked(near)
        far = socket.create_connection((host, port), 10)
        far.settimeout(None)
        print(f"{how} to {host} {port}", flush=True)
        near.sendall(answer)
        threading.Thread(target=pump, args=(near, far), daemon=True).start()
        pump(far, near)
    except OSError:
        near.close()


door = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=64)
print("listening", flush=True)
while True:
    near, _ = door.accept()
    threading.Thread(target=serve, args=(near,), daemon=True).start()
