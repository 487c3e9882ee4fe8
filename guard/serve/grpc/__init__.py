"""The gRPC door: the Open Inference Protocol, health, reflection and the operator's service, over grpc.aio."""
