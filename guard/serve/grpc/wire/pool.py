"""The descriptor pool of our own messages: a client library in the same process may define `inference.*` too."""

from google.protobuf.descriptor_pool import DescriptorPool

POOL = DescriptorPool()
