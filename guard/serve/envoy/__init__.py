"""The door for Envoy's external authorization (ext_authz): it asks, the guard answers, and Envoy forwards."""
