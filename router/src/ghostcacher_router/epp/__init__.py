"""The endpoint picker of the Gateway API inference extension: a gateway asks it where to send each request.

    gateway (Envoy) ==gRPC stream, one for each HTTP request==> server.py --> exchange.py --> picking.py --> Dispatcher
         |                                                                                       |
         '--HTTP--> the worker that was picked                             pool.py: who belongs to the InferencePool

protocol.py    the gateway's messages, as classes of protobuf
messages.py    what is read from the gateway's messages, and the answers to it
exchange.py    one HTTP request as the gateway tells of it: what is answered to each message, when a worker is picked,
               and what its placement is told
held_bodies.py bodies while they are held, and the bound of all of them
picking.py     the worker for a request, and the others that may stand in for it
candidates.py  who may be picked, and the addresses of these
pool.py        the InferencePool of a Kubernetes cluster, read again and again; cluster_objects.py: what is read of it
health.py      the health service
server.py      the gRPC server
settings.py    the picker's settings: a router's, and its own
parts.py       what it needs of the router

The protocol: proposal 004 of kubernetes-sigs/gateway-api-inference-extension, over Envoy's
`envoy.service.ext_proc.v3.ExternalProcessor`, which grpcio carries.
"""
