"""Start an ipykernel; 7.0 to 7.3 with what 7.4 does about a request that they sometimes do not read.

They send replies past the stream that reads requests from the same socket, so the wake-up for a request that
comes meanwhile is lost: the kernel says idle and waits, whatever runs in it (github.com/ipython/ipykernel,
issue 1554; here 3 of 120 notebooks). Looking once more after every reply finds that request.
"""

import sys

sys.path.pop(0)  # the folder of this file, which a notebook must not import from

import ipykernel
from ipykernel.kernelapp import IPKernelApp, launch_new_instance

if (7, 0) <= ipykernel.version_info[:2] < (7, 4):
    import zmq
    from ipykernel.subshell_manager import SubshellManager

    send = SubshellManager._send_on_shell_channel

    def send_and_look(self: SubshellManager, message: list[bytes]) -> None:
        send(self, message)
        stream = IPKernelApp.instance().kernel.shell_stream
        stream.io_loop.add_callback(stream.flush, zmq.POLLIN)

    SubshellManager._send_on_shell_channel = send_and_look

launch_new_instance()
