"""Devices and processes of a run.

cluster         joins several processes before JAX starts
local_devices   whether this machine has a GPU or TPU
mesh            the device mesh; which part of a batch each process and device gets
monitor         ends all processes of a cluster if one fails or is lost
path_rules      (regex, value) rules over parameter paths
program         kernels, memory traffic and collectives of a compiled program
processes       collective operations between processes, checks of shared storage
sharding_rules  how parameters are sharded over the mesh
targets         devices to compile for without having them
"""
